"""LMDB environments of records."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

# LMDB allows one environment a path and process, and none may cross a fork.
_environments: dict[str, lmdb.Environment] = {}


def open_lmdb(path: str | Path) -> lmdb.Environment:
    """The environment at `path` (a folder, or a data file), for reading; lmdb.Error when it is none.

    It is opened once a process. Nothing is written beside it, so it may lie on a read-only disk.
    """
    path = Path(path)
    # One spelling for the folder and its file: LMDB refuses to open the same file twice.
    key = str((path / "data.mdb" if path.is_dir() else path).resolve())
    if key not in _environments:
        _environments[key] = lmdb.open(
            key,
            subdir=False,
            readonly=True,
            lock=False,
            readahead=False,
            create=False,
            max_spare_txns=4,
        )
    return _environments[key]


def _leave_environments() -> None:
    for environment in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_leave_environments)
