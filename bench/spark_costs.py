"""What a start on Spark costs through the platform's engine, against `spark-submit` with the same settings."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dlmesh_platform.spark_cluster import SparkCluster
from dlmesh_platform.spark_setup import ROOT, SparkSetupError, install_spark, java_home
from report import Row, announce
from scheduling_service.engines.base import Attempt, Phase
from scheduling_service.engines.spark import submission
from scheduling_service.engines.spark.engine import SparkEngine

PAIRS, RANKS = 5, 2
DEADLINE_SECONDS = 120.0
PROGRAM = "print('the first line', flush=True)\n"
ENDED = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.LOST)


def measure_spark() -> list[Row]:
    """Submit to first line of a gang of two, in turns on one cluster; nothing where Spark cannot run."""
    try:
        java_home()
        install_spark(ROOT / ".spark")
    except SparkSetupError as error:
        announce(f"spark: not measured, {error}")
        return []
    with tempfile.TemporaryDirectory(prefix="dlmesh-bench-spark-") as folder:
        cluster = SparkCluster(Path(folder) / "cluster", ROOT / ".spark", usual_ports={})
        try:
            cluster.up(workers=2, cores=2, memory_mb=3072)
            return [asyncio.run(_measure(cluster, Path(folder)))]
        finally:
            cluster.down()


async def _measure(cluster: SparkCluster, folder: Path) -> Row:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    engine = SparkEngine(folder / "home")
    ours, bare = [], []
    # The first pair warms the files of Spark and is not counted.
    for number in range(PAIRS + 1):
        pair = {}
        for who in ("ours", "bare") if number % 2 else ("bare", "ours"):
            announce(f"spark: start {number} of {PAIRS}, {who}")
            wanted = _attempt(folder / f"{who}-{number}", program, cluster)
            pair[who] = await (_through_engine(engine, wanted) if who == "ours" else _by_hand(wanted, program))
        if number:
            ours.append(pair["ours"])
            bare.append(pair["bare"])
    await engine.close()
    ratio = statistics.median(ours) / statistics.median(bare)
    return Row(
        f"Spark, {RANKS} ranks: submit to first line, median of {PAIRS}",
        f"{statistics.median(ours):.1f} s ({min(ours):.1f} to {max(ours):.1f})",
        f"{statistics.median(bare):.1f} s ({min(bare):.1f} to {max(bare):.1f}) spark-submit",
        f"{ratio:.2f}",
        "at most 1.2",
        ratio <= 1.2,
    )


def _attempt(directory: Path, program: Path, cluster: SparkCluster) -> Attempt:
    return Attempt(
        job_id=directory.name,
        number=1,
        directory=directory,
        ranks=RANKS,
        gpus_per_rank=0,
        command=["python", str(program)],
        environment={"PATH": os.environ["PATH"]},
        working_directory=str(program.parent),
        grace_seconds=1.0,
        max_seconds=0.0,
        warm=False,
        master_url=cluster.master_url,
        options=cluster.engine_options,
    )


async def _through_engine(engine: SparkEngine, wanted: Attempt) -> float:
    began = time.time()
    await engine.launch(wanted)
    deadline = began + DEADLINE_SECONDS
    while (seen := await engine.observe(wanted.directory)).phase not in ENDED:
        if time.time() > deadline:
            raise TimeoutError(f"{wanted.directory}: {seen}")
        await asyncio.sleep(0.05)
    if seen.phase is not Phase.FINISHED:
        raise RuntimeError(f"{wanted.directory}: {seen}")
    took = _first_line(wanted.directory) - began
    # Its JVMs end after the ranks; the next start is to have the machine for itself, as after `spark-submit`.
    await asyncio.sleep(4)
    return took


async def _by_hand(wanted: Attempt, program: Path) -> float:
    wanted.directory.mkdir()
    (wanted.directory / submission.LOG_SETTINGS).write_text(submission.LOG4J)
    words = [str(ROOT / ".spark" / "bin" / "spark-submit"), "--master", wanted.master_url]
    for key, value in submission.properties(wanted).items():
        # In client mode there is no driver to give cores to, and none is refused.
        if key != "spark.driver.cores":
            words += ["--conf", f"{key}={value}"]
    words += [str(Path(__file__).with_name("bare_spark.py")), str(RANKS), str(wanted.directory), str(program)]
    environment = {"PATH": os.environ["PATH"], "JAVA_HOME": str(java_home()), "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PYSPARK_PYTHON"] = sys.executable
    began = time.time()
    done = await asyncio.to_thread(
        subprocess.run, words, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    if done.returncode != 0:
        raise RuntimeError(f"spark-submit ended with {done.returncode}: {done.stderr[-2000:]}")
    took = _first_line(wanted.directory) - began
    await asyncio.sleep(4)
    return took


def _first_line(directory: Path) -> float:
    """When the first rank had written: a program of one line writes once."""
    outputs = [directory / f"rank-{rank}.out" for rank in range(RANKS)]
    if any(not output.read_text() for output in outputs):
        raise RuntimeError(f"{directory}: a rank wrote nothing")
    return min(output.stat().st_mtime for output in outputs)
