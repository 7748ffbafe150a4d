"""The `dlmesh` command. Errors are one line on stderr; exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import requests
import typer
from rich.console import RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from dlmesh_platform import demo as demonstration
from dlmesh_platform import kernel_command, search_command, spark_command
from dlmesh_platform.client import API, GROUPS, USERS, Client, segment
from dlmesh_platform.endpoints import SERVICES, public_address
from dlmesh_platform.supervisor import Platform, PlatformError, Supervisor, describe, exclusive
from dlmesh_platform.terminal import (
    KNOWN_ERRORS,
    WIDE_COLUMNS,
    duration,
    err,
    home_folder,
    out,
    plain_errors,
    platform_client,
    supervisor_state,
)

app = typer.Typer(
    help="dlmesh: data, training, tuning, validation and serving behind one API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
user_app = typer.Typer(help="Accounts: add, list, remove (administrators only).", no_args_is_help=True)
app.add_typer(user_app, name="user")
group_app = typer.Typer(help="Instance groups: what jobs run on (administrators change them).", no_args_is_help=True)
app.add_typer(group_app, name="group")
app.add_typer(kernel_command.app, name="kernel")
app.add_typer(search_command.app, name="search")
app.add_typer(spark_command.app, name="spark")
LOGS = (*SERVICES, "envoy", "access", "supervisor", "warm-pool", "triton")


@app.command()
@plain_errors
def serve() -> None:
    """Run the platform in the foreground until Ctrl-C or SIGTERM; services that die are started again."""
    home = home_folder()
    with exclusive(home):
        platform = describe(home)
        first = not (home / "admin_password").exists()
        out.print(f"Starting dlmesh in {home} ...", soft_wrap=True)
        supervisor = Supervisor(platform, report=lambda line: err.print(line, markup=False, soft_wrap=True))
        supervisor.run(lambda: _welcome(platform, show_password=first))
    out.print("Everything is stopped.")


def _welcome(platform: Platform, *, show_password: bool) -> None:
    user = os.environ.get("DLMESH_ADMIN_USER") or "Admin"
    password_file = platform.home / "admin_password"
    if os.environ.get("DLMESH_ADMIN_PASSWORD"):
        where = "in DLMESH_ADMIN_PASSWORD"
    elif show_password:
        where = f"{password_file.read_text().strip()}  (shown once; kept in {password_file})"
    else:
        where = f"in {password_file}"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("REST API", f"[bold]{platform.url}{API}[/]")
    table.add_row("User", user)
    table.add_row("Password", escape(where), style=None)
    table.add_row("Data roots", " ".join(platform.data_roots))
    table.add_row("Logs", f"{platform.home / 'log'}  (dlmesh logs NAME -f)")
    out.print("[green]dlmesh is up.[/]")
    out.print(table, soft_wrap=True)
    out.print(
        f'Next: curl -u "{user}:$(cat {password_file})" {platform.url}{API}/datasets\n'
        "      docs/guide.md goes on from there; Ctrl-C stops the platform.",
        markup=False,
        soft_wrap=True,
    )


@app.command()
@plain_errors
def demo() -> None:
    """The main job from start to end on a platform of its own, below DLMESH_HOME/demo."""
    home = home_folder() / "demo"
    try:
        demonstration.Demo(home, out).run()
    except demonstration.DemoError as error:
        err.print(f"[red]dlmesh demo:[/] {escape(str(error))}", soft_wrap=True)
        err.print(demonstration.failure_report(home), markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


@app.command()
@plain_errors
def status() -> None:
    """Health and addresses of the running platform; exit 1 when it is not healthy."""
    home = home_folder()
    state = supervisor_state(home)
    host, port = public_address()
    url = state.get("url") or f"http://{host}:{port}"
    session = requests.Session()
    session.trust_env = False
    response = session.get(f"{url}/healthz", timeout=10)
    health = response.json()
    endpoints = home / "run" / "endpoints.json"
    addresses = json.loads(endpoints.read_text()) if endpoints.exists() else {}
    table = Table("service", "health", "address", "process")
    table.add_row("envoy", "SERVING", url.removeprefix("http://"), str(state.get("processes", {}).get("envoy", "")))
    services = health.get("services", {}) if isinstance(health, dict) else {}
    for name in SERVICES:
        word = str(services.get(name, "SERVING" if response.status_code == 200 else "?"))
        table.add_row(name, word, addresses.get(name, ""), str(state.get("processes", {}).get(name, "")))
    out.print(table)
    if response.status_code != 200:
        raise typer.Exit(1)


@app.command()
@plain_errors
def logs(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(LOGS)}")] = "supervisor",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on printing what is added")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="how many of the last lines")] = 50,
) -> None:
    """The log of one process of the platform."""
    if name not in LOGS:
        err.print(f"[red]dlmesh:[/] no log {escape(name)!r}; there are {', '.join(LOGS)}")
        raise typer.Exit(2)
    path = home_folder() / "log" / f"{name}.log"
    if not path.exists():
        raise PlatformError(f"{path} does not exist: {name} has not been started in this home")
    with path.open(errors="replace") as file:
        text = file.read().splitlines(keepends=True)
        sys.stdout.write("".join(text[len(text) - lines :] if lines else []))
        while follow:
            sys.stdout.flush()
            added = file.read()
            sys.stdout.write(added)
            if not added:
                time.sleep(0.3)


@app.command()
@plain_errors
def config() -> None:
    """The effective configuration, without secrets (GET /conf)."""
    for key, value in sorted(platform_client(home_folder()).get("/conf").items()):
        out.print(f"{key} = {value}", markup=False, soft_wrap=True)


@app.command("write-digits")
@plain_errors
def write_digits(folder: Annotated[Path, typer.Argument(help="where to; a folder a digit is made in it")]) -> None:
    """Write scikit-learn's 1797 handwritten digits as PNG class folders, to try the platform with."""
    from dlmesh_platform.main_job import write_digits as write

    write(folder, folder, per_digit_held_out=0)
    out.print(f"1797 images in {folder}", soft_wrap=True)


@user_app.command("add")
@plain_errors
def add_user(
    name: str,
    admin: Annotated[bool, typer.Option("--admin", help="may see and change everything")] = False,
    password: Annotated[
        str, typer.Option(envvar="DLMESH_NEW_PASSWORD", prompt=True, hide_input=True, confirmation_prompt=True)
    ] = "",
) -> None:
    """Create an account; the password is asked for, or taken from DLMESH_NEW_PASSWORD."""
    platform_client(home_folder()).post(
        USERS, {"name": name, "password": password, "role": "admin" if admin else "user"}
    )
    out.print(f"user {name} added", markup=False)


@user_app.command("list")
@plain_errors
def list_users() -> None:
    """All accounts."""
    table = Table("user", "role", "created (UTC)")
    for user in platform_client(home_folder()).get(USERS):
        table.add_row(user["name"], user["role"], user.get("createTime", ""))
    out.print(table)


@user_app.command("remove")
@plain_errors
def remove_user(name: str) -> None:
    """Remove an account; what it owned stays."""
    platform_client(home_folder()).delete(f"{USERS}/{segment(name)}")
    out.print(f"user {name} removed", markup=False)


def _known_groups(incomplete: str) -> list[str]:
    """Names for tab completion; none when nothing answers."""
    try:
        names = [str(group["name"]) for group in platform_client(home_folder(), patience_seconds=0.0).get(GROUPS)]
    except KNOWN_ERRORS:
        return []
    return [name for name in names if name.startswith(incomplete)]


GroupName = Annotated[str, typer.Argument(help="name or id of a group", autocompletion=_known_groups)]
Engine = Annotated[str | None, typer.Option(help="local or spark")]
MasterUrl = Annotated[str | None, typer.Option(help="spark://host:port, k8s://host:port or yarn; nothing for local")]
HistoryServerUrl = Annotated[str | None, typer.Option(help="of Spark's history server")]
Hosts = Annotated[int | None, typer.Option(help="hosts of this size")]
SlotsPerHost = Annotated[int | None, typer.Option(help="ranks that may run on a host at once")]
GpusPerHost = Annotated[int | None, typer.Option(help="GPUs of a host")]
Policy = Annotated[str | None, typer.Option(help="fairshare, fifo or priority")]
ExecutionUser = Annotated[str | None, typer.Option(help="account that ranks run as; '' is the platform's own")]
MaxSlotsPerUser = Annotated[int | None, typer.Option(help="slots that a user may hold at once; 0 is unlimited")]
EngineOption = Annotated[
    list[str] | None, typer.Option("--option", help="KEY=VALUE of the engine, repeatable; KEY= removes it")
]


def _group_settings(options: list[str] | None, **settings: str | int | None) -> dict[str, Any]:
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    for option in options or []:
        key, separator, value = option.partition("=")
        if not separator:
            raise typer.BadParameter(f"{option!r} is not KEY=VALUE", param_hint="--option")
        given.setdefault("engineOptions", {})[key] = value
    return given


@group_app.command("list")
@plain_errors
def list_groups() -> None:
    """All groups with their settings."""
    table = Table("group", "state", "engine", "hosts", "slots", "GPUs", "policy", "quota")
    for column in table.columns:
        column.no_wrap = True
    if wide := out.width >= WIDE_COLUMNS:
        table.add_column("runs as")
        table.add_column("master")
    for group in platform_client(home_folder()).get(GROUPS):
        more = (escape(group["executionUser"]), escape(group["masterUrl"])) if wide else ()
        table.add_row(
            escape(group["name"]),
            group["state"],
            group["engine"],
            str(group["hosts"]),
            str(group["hosts"] * group["slotsPerHost"]),
            str(group["hosts"] * group["gpusPerHost"]),
            group["policy"],
            str(group["maxSlotsPerUser"] or ""),
            *more,
        )
    out.print(table)


@group_app.command("create")
@plain_errors
def create_group(
    name: Annotated[str, typer.Argument(help="of the new group")],
    slots_per_host: Annotated[int, typer.Option(help="ranks that may run on a host at once")],
    engine: Engine = None,
    hosts: Hosts = None,
    gpus_per_host: GpusPerHost = None,
    master_url: MasterUrl = None,
    history_server_url: HistoryServerUrl = None,
    policy: Policy = None,
    execution_user: ExecutionUser = None,
    max_slots_per_user: MaxSlotsPerUser = None,
    option: EngineOption = None,
) -> None:
    """Make a group; it is started."""
    settings = _group_settings(
        option,
        name=name,
        engine=engine,
        hosts=hosts,
        slotsPerHost=slots_per_host,
        gpusPerHost=gpus_per_host,
        masterUrl=master_url,
        historyServerUrl=history_server_url,
        policy=policy,
        executionUser=execution_user,
        maxSlotsPerUser=max_slots_per_user,
    )
    made = platform_client(home_folder()).post(GROUPS, settings)
    out.print(f"group {name} made: {made['id']}", markup=False, soft_wrap=True)


@group_app.command("set")
@plain_errors
def set_group(
    name: GroupName,
    slots_per_host: SlotsPerHost = None,
    engine: Engine = None,
    hosts: Hosts = None,
    gpus_per_host: GpusPerHost = None,
    master_url: MasterUrl = None,
    history_server_url: HistoryServerUrl = None,
    policy: Policy = None,
    execution_user: ExecutionUser = None,
    max_slots_per_user: MaxSlotsPerUser = None,
    option: EngineOption = None,
) -> None:
    """Change what is given; the rest stays, and what runs goes on."""
    settings = _group_settings(
        option,
        engine=engine,
        hosts=hosts,
        slotsPerHost=slots_per_host,
        gpusPerHost=gpus_per_host,
        masterUrl=master_url,
        historyServerUrl=history_server_url,
        policy=policy,
        executionUser=execution_user,
        maxSlotsPerUser=max_slots_per_user,
    )
    if not settings:
        raise typer.BadParameter("nothing to change: name at least one option", param_hint="OPTIONS")
    platform_client(home_folder()).put(f"{GROUPS}/{segment(name)}", settings)
    out.print(f"group {name} changed", markup=False)


@group_app.command("start")
@plain_errors
def start_group(name: GroupName) -> None:
    """Let waiting jobs start again."""
    platform_client(home_folder()).put(f"{GROUPS}/{segment(name)}/start")
    out.print(f"group {name} started", markup=False)


@group_app.command("stop")
@plain_errors
def stop_group(name: GroupName) -> None:
    """Start nothing any more; what runs goes on to its end."""
    platform_client(home_folder()).put(f"{GROUPS}/{segment(name)}/stop")
    out.print(f"group {name} stopped", markup=False)


@group_app.command("delete")
@plain_errors
def delete_group(name: GroupName) -> None:
    """Remove a group of which all jobs have ended."""
    platform_client(home_folder()).delete(f"{GROUPS}/{segment(name)}")
    out.print(f"group {name} deleted", markup=False)


@group_app.command("share")
@plain_errors
def share_group(
    name: GroupName,
    user: Annotated[str | None, typer.Argument(help="without one: list the shares")] = None,
    weight: Annotated[float | None, typer.Option(help="twice the weight, twice the slots; 1 is everybody's")] = None,
    max_slots: Annotated[int | None, typer.Option(help="slots that the user may hold at once; 0: no own limit")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="back to weight 1 and the group's quota")] = False,
) -> None:
    """What users may have of a group: list, set or remove shares."""
    if user is None and (remove or weight is not None or max_slots is not None):
        raise typer.BadParameter("whose share?", param_hint="USER")
    client, path = platform_client(home_folder()), f"{GROUPS}/{segment(name)}/shares"
    if user is None:
        table = Table("user", "weight", "most slots")
        for share in client.get(path):
            table.add_row(escape(share["user"]), f"{share['weight']:g}", str(share["maxSlots"] or ""))
        out.print(table)
        return
    if remove:
        client.delete(f"{path}/{segment(user)}")
        out.print(f"share of {user} in group {name} removed", markup=False)
        return
    before = {share["user"]: share for share in client.get(path)}.get(user, {"weight": 1.0, "maxSlots": 0})
    share = {
        "weight": before["weight"] if weight is None else weight,
        "maxSlots": before["maxSlots"] if max_slots is None else max_slots,
    }
    client.put(f"{path}/{segment(user)}", share)
    out.print(f"share of {user} in group {name} set", markup=False)


QUEUE_FIELDS = (
    "applicationid,applicationname,username,sigName,slots,demandslots,priority,submittedtime,apprunduration,"
    "statusMessage"
)


@app.command()
@plain_errors
def queue(
    group: Annotated[
        str | None, typer.Option("--group", "-g", help="only of this group", autocompletion=_known_groups)
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="how many jobs at most")] = 50,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="go on until Ctrl-C")] = False,
) -> None:
    """What runs and what waits, and why."""
    client = platform_client(home_folder())
    if not watch:
        out.print(_queue_table(client, group, lines))
        return
    with Live(_queue_table(client, group, lines), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            live.update(_queue_table(client, group, lines), refresh=True)


def _queue_table(client: Client, group: str | None, lines: int) -> RenderableType:
    wide = out.width >= WIDE_COLUMNS
    table = Table("job", "name", "owner", *(("group", "priority") if wide else ()), "state", "ranks", "for")
    for column in table.columns:
        # On a narrow terminal the sentence stands below the name, which may be broken.
        column.no_wrap = wide or column.header != "name"
    if wide:
        table.add_column("says")
    query = {"fields": QUEUE_FIELDS, "sort": "submittedtime", "length": str(lines)} | (
        {"sigId": group} if group else {}
    )
    now = time.time()
    for state in ("RUNNING", "SUBMITTED"):
        for job in client.get("/scheduler/applications", state=state, **query):
            waits = state == "SUBMITTED"
            seconds = now - job["submittedtime"] / 1000 if waits else job["apprunduration"]
            name, says = escape(job["applicationname"]), escape(job["statusMessage"])
            table.add_row(
                job["applicationid"] if wide else job["applicationid"][:8],
                name if wide or not says else f"{name}\n[dim]{says}[/]",
                escape(job["username"]),
                *((escape(job.get("sigName", "")), str(job["priority"] or "")) if wide else ()),
                "waits" if waits else "[green]runs[/]",
                str(job["demandslots"] if waits else job["slots"]),
                duration(seconds),
                *((says,) if wide else ()),
            )
    return table if table.row_count else "Nothing runs, nothing waits."


if __name__ == "__main__":
    app(prog_name="dlmesh")
