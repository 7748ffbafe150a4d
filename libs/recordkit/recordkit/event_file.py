"""Event files, the TFRecord files from which TensorBoard draws its curves."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from dlmesh.training.v1 import event_files_pb2

from recordkit.tfrecord import frame

_VERSION = "brain.Event:2"
_START = event_files_pb2.SessionLog(status=event_files_pb2.SESSION_STATUS_START)


class EventFile:
    """A new file in `folder`, for curves that begin at `first_step`.

    From that step on it takes the place of older files there, as a run does that went back to a checkpoint. What was
    written is in the file at once, record by record. OSError when it cannot be made.
    """

    def __init__(self, folder: str | Path, first_step: int) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        now = time.time()
        # Readers take the files of a folder in the order of their names.
        name = f"events.out.tfevents.{int(now):010d}.{time.time_ns() % 10**9:09d}.{socket.gethostname()}.{os.getpid()}"
        self.path = Path(folder, name)
        self._file = self.path.open("xb", buffering=0)
        begin = (
            event_files_pb2.Event(wall_time=now, file_version=_VERSION),
            event_files_pb2.Event(wall_time=now, step=first_step, session_log=_START),
        )
        self._write(b"".join(frame(event.SerializeToString()) for event in begin))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """One point for each tag. OSError when it cannot be written; the file is of no use afterwards."""
        scalars = [event_files_pb2.Scalar(tag=tag, value=value) for tag, value in values.items()]
        event = event_files_pb2.Event(wall_time=time.time(), step=step, scalars=event_files_pb2.Scalars(values=scalars))
        self._write(frame(event.SerializeToString()))

    def close(self) -> None:
        """Nothing is kept back."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
