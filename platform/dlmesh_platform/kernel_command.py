"""`dlmesh kernel`: models with a kernel of their own, published, started, asked and removed."""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dlmesh_platform.client import Client, segment
from dlmesh_platform.supervisor import PlatformError
from dlmesh_platform.terminal import WIDE_COLUMNS, home_folder, out, plain_errors, platform_client

app = typer.Typer(help="Kernels: publish programs that answer requests, start and ask them.", no_args_is_help=True)
COLOURS = {"STARTED": "green", "STARTING": "cyan", "STOPPING": "cyan", "FAILED": "red", "STOPPED": "yellow"}
INVOKE = "/dlim/v1/inference/"
# Of a state to be reached: longer than five kernels may take to fail, or accepted tasks to be answered.
WAIT_SECONDS, LOOK_SECONDS = 600.0, 0.2
ASK_SECONDS = 3600.0
_LEFT_OUT = ("__pycache__", ".git")
_BOUNDARY = "dlmesh-kernel-model-7d1f2b"
_COPY_BYTES = 1024 * 1024


def _known_models(incomplete: str) -> list[str]:
    """For completion: a platform that does not answer has none."""
    try:
        client = platform_client(home_folder(), patience_seconds=0.0, timeout_seconds=2.0)
        return [one["name"] for one in client.get("/edimodels") if one["name"].startswith(incomplete)]
    except Exception:
        return []


Name = Annotated[str, typer.Argument(help="the model's name", autocompletion=_known_models)]


@app.command("list")
@plain_errors
def list_models() -> None:
    """All models that you may see."""
    is_wide = out.width >= WIDE_COLUMNS
    table = Table("model", "state", "kernels", "tag", "MiB", "owner", *(["says"] if is_wide else []))
    for column in table.columns:
        # What is typed into other commands is never cut off.
        column.no_wrap, column.overflow = column.header != "says", "fold"
    said = []
    for one in platform_client(home_folder()).get("/edimodels"):
        name, words = escape(one["name"]), escape(_last_line(one["statusMessage"]))
        table.add_row(
            name,
            _coloured(one["state"]),
            _range(one),
            escape(one["tag"]),
            f"{one['size'] / 1024**2:.1f}",
            escape(one["creator"]),
            *([words] if is_wide else []),
        )
        if words and not is_wide:
            said.append(f"{name}: {words}")
    out.print(table if table.row_count else "No models. docs/inference.md has one to begin with.")
    for line in said:
        out.print(line)


@app.command()
@plain_errors
def view(
    name: Name, as_json: Annotated[bool, typer.Option("--json", "-j", help="all that the API says of it")] = False
) -> None:
    """One model, and what its kernels do now."""
    client = platform_client(home_folder())
    model = client.get(_path(name))
    daemons = client.get(f"{_path(name)}/instance")["instance"].get("instances", [])
    if as_json:
        out.print_json(data={"model": model, "instances": daemons})
        return
    out.print(
        f"[bold]{escape(name)}[/] {_coloured(model['state'])}  kernels {_range(model)}, of {escape(model['creator'])}"
    )
    if model["statusMessage"]:
        out.print(model["statusMessage"], markup=False, soft_wrap=True)
    for key in ("kernel_path", "weight_path", "runtime", "tag", "service_uri", "create_time"):
        if model.get(key):
            out.print(f"{key.replace('_', ' ')}: {model[key]}", markup=False, soft_wrap=True)
    for one in daemons:
        out.print(
            f"{one['pending_number']} tasks wait, {one['client_number']} clients, {one['request_per_sec']} requests/s, "
            f"{one['data_size_per_sec']} bytes/s"
        )
        if one.get("isd_container"):
            out.print(_kernels_table(one["isd_container"]))


@app.command()
@plain_errors
def deploy(
    path: Annotated[Path, typer.Option("--path", "-p", exists=True, file_okay=False, help="the model's folder")],
    name: Annotated[str, typer.Option("--name", "-n", help="its name; that of model.json, else the folder's")] = "",
    start: Annotated[bool, typer.Option("--start", help="start it, too")] = False,
) -> None:
    """Publish a folder: kernel.py, model.json, README.md, weights."""
    name = name or _name_of(path)
    client = platform_client(home_folder())
    with tempfile.TemporaryFile() as file:
        _pack(path, file)
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        client.request("POST", f"{_path(name)}/upload", data=_multipart(file), headers=headers)
    out.print(f"{name} is published", markup=False)
    if start:
        _start(client, name)


@app.command()
@plain_errors
def start(name: Name) -> None:
    """Start a model and wait until it takes tasks; exit 1 with its kernel's words when it cannot."""
    _start(platform_client(home_folder()), name)


@app.command()
@plain_errors
def stop(name: Name) -> None:
    """Stop a model and wait until what it had accepted is answered."""
    _stop(platform_client(home_folder()), name)
    out.print(f"{name} is stopped", markup=False)


@app.command()
@plain_errors
def undeploy(
    name: Name, force: Annotated[bool, typer.Option("--force", "-f", help="stop it first when it runs")] = False
) -> None:
    """Remove a model and its files."""
    client = platform_client(home_folder())
    if force:
        _stop(client, name)
    client.delete(_path(name))
    out.print(f"{name} is removed", markup=False)


@app.command()
@plain_errors
def profile(
    name: Name,
    changes: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="section.field=value, as policy.kernel_min=0; repeatable")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", exists=True, dir_okay=False, help="JSON of it")] = None,
) -> None:
    """Show how a model runs, or change it while it is stopped."""
    body = json.loads(file.read_text()) if file else {}
    if not isinstance(body, dict):
        raise PlatformError(f"{file}: an object is wanted, as `dlmesh kernel profile {name}` prints it")
    for change in changes or []:
        _set(body, change)
    client = platform_client(home_folder())
    if body:
        client.put(f"{_path(name)}/appprofile", {"name": name, **body})
    out.print_json(data=client.get(f"{_path(name)}/appprofile"))


@app.command()
@plain_errors
def test(
    name: Name,
    text: Annotated[str, typer.Argument(help="the task's input; - reads standard input")],
) -> None:
    """Give a model one task and print its answer."""
    client = platform_client(home_folder(), timeout_seconds=ASK_SECONDS)
    data = sys.stdin.buffer.read() if text == "-" else text.encode()
    answer = client.request("POST", f"{INVOKE}{segment(name)}", data=data, headers={"Content-Type": "text/plain"})
    out.print(answer.content.decode(), markup=False, soft_wrap=True)


def _start(client: Client, name: str) -> None:
    client.put(f"{_path(name)}/operation/start")
    model = _reach(client, name, "STARTED", "FAILED", "STOPPED")
    if model["state"] != "STARTED":
        raise PlatformError(f"{name} is {model['state']}: {model['statusMessage'] or 'somebody stopped it'}")
    out.print(f"{name} takes tasks: {model['service_uri']}", markup=False, soft_wrap=True)


def _stop(client: Client, name: str) -> None:
    client.put(f"{_path(name)}/operation/stop")
    _reach(client, name, "STOPPED")


def _reach(client: Client, name: str, *states: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while (model := client.get(_path(name)))["state"] not in states:
        if time.monotonic() > deadline:
            raise PlatformError(
                f"{name} is still {model['state']} after {WAIT_SECONDS:.0f} s: {model['statusMessage']}"
            )
        time.sleep(LOOK_SECONDS)
    return model


def _path(name: str) -> str:
    return f"/edimodels/{segment(name)}"


def _name_of(folder: Path) -> str:
    manifest = folder / "model.json"
    if manifest.is_file():
        value = json.loads(manifest.read_text())
        if isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"]:
            return str(value["name"])
    return folder.resolve().name


def _pack(folder: Path, file: IO[bytes]) -> None:
    """A tar of the folder's files; links are packed as what they lead to."""

    def is_kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if set(Path(member.name).parts) & set(_LEFT_OUT) else member

    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1, dereference=True) as archive:
        archive.add(folder, arcname="model", filter=is_kept)


def _multipart(file: IO[bytes]) -> Iterator[bytes]:
    yield f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"\r\n\r\n'.encode()
    file.seek(0)
    while chunk := file.read(_COPY_BYTES):
        yield chunk
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()


def _set(body: dict[str, Any], change: str) -> None:
    """`a.b=1` into `body`; numbers and truth values are read as such."""
    names, found, text = change.partition("=")
    if not found or not all(names.split(".")):
        raise typer.BadParameter(f"{change!r} is not SECTION.FIELD=VALUE, as policy.kernel_min=0", param_hint="--set")
    *sections, field = names.split(".")
    for section in sections:
        body = body.setdefault(section, {})
        if not isinstance(body, dict):
            raise typer.BadParameter(f"{change!r}: {section} is no section", param_hint="--set")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    # An octal mask looks like a number, too.
    body[field] = text if field == "umask" else value


def _kernels_table(kernels: Sequence[Any]) -> Table:
    table = Table("kernel", "host", "does", "tasks", "now", "failed")
    for one in kernels:
        table.add_row(
            escape(one["container_uid"]),
            escape(one["container_host"]),
            one["container_status"],
            str(one["finish_task"]),
            str(one["running_task"]),
            str(one["failed_task"]),
        )
    return table


def _coloured(state: str) -> str:
    return f"[{COLOURS.get(state, 'white')}]{escape(state)}[/]"


def _range(model: Any) -> str:
    most = model["mk_instance_max"]
    return f"{model['mk_instance_min']} to {'any' if most < 0 else most}"


def _last_line(text: str) -> str:
    """Of a kernel's words the last says what went wrong."""
    return text.strip().rpartition("\n")[2]
