"""`dlmesh spark`: a Spark cluster of one's own on this machine, for trials of the engine spark."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dlmesh_platform.client import GROUPS
from dlmesh_platform.spark_cluster import SparkCluster
from dlmesh_platform.spark_setup import ROOT, SparkSetupError, install_spark

app = typer.Typer(help="A Spark cluster on this machine: start, stop, look.", no_args_is_help=True)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
GROUP_NAME = "spark"


def _cluster() -> SparkCluster:
    home = Path(os.environ.get("DLMESH_HOME") or ".dlmesh").resolve()
    return SparkCluster(home / "spark", ROOT / ".spark")


def _fail(error: Exception) -> typer.Exit:
    err.print(f"dlmesh: {error}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(1)


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, envvar="DLMESH_SPARK_WORKERS", help="processes that act as hosts")] = 2,
    cores: Annotated[int, typer.Option(min=1, envvar="DLMESH_SPARK_CORES", help="of each worker: ranks at once")] = 2,
    memory_mb: Annotated[
        int, typer.Option(min=1024, envvar="DLMESH_SPARK_MEMORY_MB", help="of each worker, 512 a driver or executor")
    ] = 3072,
) -> None:
    """Install Spark if it is not there, and start what does not run: master, workers, history server."""
    archive = os.environ.get("DLMESH_SPARK_ARCHIVE")
    cluster = _cluster()
    try:
        install_spark(ROOT / ".spark", Path(archive) if archive else None)
        cluster.up(workers, cores, memory_mb)
    except (SparkSetupError, OSError) as error:
        raise _fail(error) from None
    out.print("[green]Spark is up.[/]")
    _print_addresses(cluster)
    words = ["dlmesh", "group", "create", GROUP_NAME, "--engine", "spark", "--hosts", str(workers)]
    words += ["--slots-per-host", str(cores), "--master-url", cluster.master_url]
    words += ["--history-server-url", cluster.history_url]
    for key, value in cluster.engine_options.items():
        words += ["--option", f"{key}={value}"]
    out.print(f"An instance group on it (POST {GROUPS} does the same):", markup=False)
    out.print(f"  {shlex.join(words)}", markup=False, soft_wrap=True)
    out.print(f"Then jobs name it: sigName={GROUP_NAME}. `make spark-down` stops it.", markup=False)


@app.command()
def down() -> None:
    """Stop what `up` started; event logs and the ports stay."""
    ran = _cluster().down()
    out.print(f"stopped: {', '.join(ran)}" if ran else "nothing of it was running", markup=False)


@app.command()
def status() -> None:
    """Which of its processes run; exit 1 when not all do."""
    cluster = _cluster()
    processes = cluster.processes()
    if not processes:
        out.print("no Spark cluster was started here (dlmesh spark up)")
        raise typer.Exit(1)
    table = Table("process", "state", "pid")
    for name, daemon in sorted(processes.items()):
        table.add_row(name, "runs" if daemon.is_alive else "ENDED", str(daemon.pid))
    out.print(table)
    _print_addresses(cluster)
    if not all(daemon.is_alive for daemon in processes.values()):
        raise typer.Exit(1)


def _print_addresses(cluster: SparkCluster) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("Master", f"{cluster.master_url}  ({cluster.master_ui})")
    table.add_row("Submissions", f"http://127.0.0.1:{cluster.ports['rest']}")
    table.add_row("History", cluster.history_url)
    out.print(table, soft_wrap=True)
