"""Kernels of Elastic Distributed Inference: what they derive from, and what they are handed. Standard library only."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlmesh_sdk.kernel_connection import FRAME_BYTES, HEADER_BYTES, KernelConnection, connection, words_of

NO_OUTPUT = "the kernel set no output"


class KernelContext:
    """What a kernel is told when it starts."""

    def __init__(self, start: dict[str, Any]) -> None:
        self._start = start

    def get_id(self) -> str:
        """Of this process among the kernels of its model."""
        return str(self._start["kernel"])

    def get_instance_id(self) -> str:
        """Of the model's instance, which all its kernels share."""
        return str(self._start["instance"])

    def get_model_description(self) -> str:
        """JSON: model.json as it was published, with absolute paths in `model_path` and `weight_path`."""
        return json.dumps(self._start["description"])


class TaskContext:
    """A task, and the way to its neighbours in the batch: `next()` is None behind the last."""

    def __init__(self, task: dict[str, Any], batch: _Batch, index: int) -> None:
        self._task, self._batch, self._index = task, batch, index
        self._output: str | None = None
        self._output_extension = ""

    def next(self) -> TaskContext | None:
        """The task behind this one."""
        return self._batch.task(self._index + 1)

    def prev(self) -> TaskContext | None:
        """The task before this one."""
        return self._batch.task(self._index - 1)

    def get_id(self) -> str:
        """The caller's name for it."""
        return str(self._task["id"])

    def get_uuid(self) -> str:
        """Unlike that of any other task."""
        return str(self._task["uuid"])

    def get_session_id(self) -> str:
        """Of the stream that it came with; empty when it came alone."""
        return str(self._task["session"])

    def get_job_id(self) -> str:
        """Of the request that it came with."""
        return str(self._task["job"])

    def get_input_data(self) -> str:
        """What is asked."""
        return str(self._task["input"])

    def get_input_data_extend(self) -> str:
        """What is said beside it; mostly nothing."""
        return str(self._task["extension"])

    def set_output_data(self, data: str | bytes) -> None:
        """The answer: text, or bytes that are UTF-8."""
        if isinstance(data, bytes):
            data = data.decode()
        if not isinstance(data, str):
            raise TypeError(f"set_output_data() takes a str, not {type(data).__name__}")
        self._output = data

    def set_output_data_extend(self, data: str) -> None:
        """Kept with the task; no caller is shown it."""
        self._output_extension = str(data)

    def report_ready(self) -> None:
        """Send the answer now instead of with the rest of the batch."""
        self._batch.answer([self], NO_OUTPUT)
        self._batch.flush()

    def _answer(self, otherwise: str, output_bytes: int) -> tuple[bytes, bytes]:
        """What the header says of it, and the output."""
        key, error = self._task["key"], otherwise
        if self._output is not None:
            try:
                text = self._output.encode()
            except UnicodeEncodeError:
                error = "its output is no text: it has characters that UTF-8 does not know"
            else:
                if len(text) <= output_bytes:
                    return b'{"key": %d, "bytes": %d}' % (key, len(text)), text
                error = f"its output has {len(text)} bytes; allowed are {output_bytes}"
        return json.dumps({"key": key, "error": error}).encode(), b""


class _Batch:
    def __init__(self, tasks: Sequence[dict[str, Any]], line: KernelConnection, output_bytes: int) -> None:
        self.tasks = [TaskContext(task, self, index) for index, task in enumerate(tasks)]
        self._line, self._output_bytes = line, output_bytes
        self._answered: set[int] = set()
        self._answers: list[bytes] = []
        self._texts: list[bytes] = []
        self._held_bytes = self._header_bytes = 0

    def task(self, index: int) -> TaskContext | None:
        return self.tasks[index] if 0 <= index < len(self.tasks) else None

    def answer(self, tasks: Sequence[TaskContext], otherwise: str) -> None:
        """Answer those that were not answered yet; `otherwise` is the error of one without output."""
        for task in tasks:
            if task._index in self._answered:
                continue
            self._answered.add(task._index)
            answer, text = task._answer(otherwise, self._output_bytes)
            is_full = self._held_bytes + len(text) > FRAME_BYTES
            if is_full or self._header_bytes + len(answer) > HEADER_BYTES - 100:
                self.flush()
            self._answers.append(answer)
            self._texts.append(text)
            self._held_bytes += len(text)
            self._header_bytes += len(answer) + 2

    def flush(self, *, done: bool = False) -> None:
        if self._answers or done:
            end = b', "done": true}' if done else b"}"
            self._line.send_frame(b'{"answers": [' + b", ".join(self._answers) + b"]" + end, self._texts)
        self._answers, self._texts = [], []
        self._held_bytes = self._header_bytes = 0


class Kernel:
    """Derive from it, and call `run()` of an object at the end of kernel.py."""

    def on_kernel_start(self, kernel_context: KernelContext) -> None:
        """Once, before the first task: load the model."""

    def on_task_invoke(self, task_context: TaskContext) -> None:
        """A batch, by its first task: set the output of each, up to the one behind which `next()` is None."""
        raise NotImplementedError("on_task_invoke")

    def on_kernel_shutdown(self) -> None:
        """Once, after the last task."""

    def run(self) -> None:
        """Answer tasks until the platform says that it is enough. Exit code 2 when no platform has started this."""
        line = connection()
        if line is None:
            print(
                "This kernel answers tasks of a platform: publish its folder (POST /edimodels/NAME/upload, or "
                "`dlmesh kernel deploy -p FOLDER`) and start the model.",
                file=sys.stderr,
            )
            raise SystemExit(2)
        start = line.receive()
        if start is None:
            return
        self.on_kernel_start(KernelContext(start["start"]))
        line.send({"ready": True})
        while message := line.receive():
            if "tasks" not in message:
                break
            self._invoke(_Batch(message["tasks"], line, start["start"]["output_bytes"]))
        self.on_kernel_shutdown()

    def _invoke(self, batch: _Batch) -> None:
        otherwise = NO_OUTPUT
        try:
            self.on_task_invoke(batch.tasks[0])
        except Exception as error:
            traceback.print_exc()
            otherwise = words_of(error, [str(Path(sys.argv[0]).parent)])
            if isinstance(error, MemoryError):
                batch.answer(batch.tasks, otherwise)
                batch.flush(done=True)
                # What it holds it will not give back.
                raise
        batch.answer(batch.tasks, otherwise)
        batch.flush(done=True)

    @staticmethod
    def log(*words: object) -> None:
        """A line in the log of the model's kernels."""
        _log("", words)

    @staticmethod
    def log_debug(*words: object) -> None:
        """As `log`, marked DEBUG."""
        _log("DEBUG ", words)

    @staticmethod
    def log_info(*words: object) -> None:
        """As `log`, marked INFO."""
        _log("INFO ", words)

    @staticmethod
    def log_warn(*words: object) -> None:
        """As `log`, marked WARN."""
        _log("WARN ", words)

    @staticmethod
    def log_error(*words: object) -> None:
        """As `log`, marked ERROR."""
        _log("ERROR ", words)


def _log(level: str, words: Sequence[object]) -> None:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    print(f"{stamp} {level}{' '.join(map(str, words))}", file=sys.stderr, flush=True)
