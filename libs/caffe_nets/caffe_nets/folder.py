"""The prototxt files of a model directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmesh_sdk.program_logs import say

from caffe_nets.layers import KNOWN_TYPES
from caffe_nets.schema import MESSAGES, CaffeError, check_types, parse_net, parse_solver, read_text

_SHOWN_CHARACTERS = 100
INFERENCE_SUFFIXES = ("inference.prototxt", "deploy.prototxt")


@dataclass(frozen=True)
class Folder:
    """What the files say: the solver, the nets of both phases with their states, and the net for inference if any."""

    solver: Any
    train_net: Any
    train_state: Any
    test_net: Any
    test_state: Any
    inference_net: Any = None


def read_folder(folder: Path) -> Folder:
    """Read `*solver.prototxt` and the nets that it names, which lie beside it whatever their paths say.

    Without a name the net is `*train_test.prototxt`. CaffeError says what is missing or cannot be understood.
    """
    file = _named(folder, "solver.prototxt")
    if file is None:
        raise CaffeError("the model directory has no *solver.prototxt")
    solver = parse_solver(read_text(file), file.name)
    common = _inline(solver.net_param, file.name) if solver.HasField("net_param") else None
    if common is None and solver.net:
        common = _net(folder, solver.net)
    train_net, test_net = common, common
    if solver.HasField("train_net_param"):
        train_net = _inline(solver.train_net_param, file.name)
    elif solver.train_net:
        train_net = _net(folder, solver.train_net)
    if solver.test_net_param:
        test_net = _inline(solver.test_net_param[0], file.name)
    elif solver.test_net:
        test_net = _net(folder, solver.test_net[0])
    if train_net is None:
        default = _named(folder, "train_test.prototxt")
        if default is None:
            raise CaffeError(f"{file.name} names no net, and the model directory has no *train_test.prototxt")
        train_net = _net(folder, default.name)
    found = (_named(folder, suffix) for suffix in INFERENCE_SUFFIXES)
    inference = next((name for name in found if name is not None), None)
    return Folder(
        solver=solver,
        train_net=train_net,
        train_state=_state("TRAIN", train_net.state, solver.train_state),
        test_net=test_net or train_net,
        test_state=_state("TEST", (test_net or train_net).state, *solver.test_state[:1]),
        inference_net=_net(folder, inference.name) if inference else None,
    )


def _state(phase: str, *states: Any) -> Any:
    merged = MESSAGES["NetState"]()
    for state in states:
        merged.MergeFrom(state)
    merged.phase = merged.DESCRIPTOR.fields_by_name["phase"].enum_type.values_by_name[phase].number
    return merged


def _named(folder: Path, suffix: str) -> Path | None:
    return next((file for file in sorted(folder.glob(f"*{suffix}")) if file.is_file()), None)


def _net(folder: Path, path: str) -> Any:
    # Their paths are those of the machine they were written on.
    file = folder / Path(path).name
    if not _is_file(file):
        found = _named(folder, "train_test.prototxt")
        shown = path if len(path) <= _SHOWN_CHARACTERS else f"{path[:_SHOWN_CHARACTERS]}..."
        if found is None:
            raise CaffeError(f"the solver names the net {shown!r}, and the model directory has no {Path(shown).name}")
        if os.environ.get("RANK", "0") == "0":
            say(f"the solver names the net {shown!r}, which is not there; {found.name} is taken")
        file = found
    return parse_net(read_text(file), file.name, KNOWN_TYPES)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A name longer than those of files.
        return False


def _inline(net: Any, source: str) -> Any:
    check_types(net, source, KNOWN_TYPES)
    return net
