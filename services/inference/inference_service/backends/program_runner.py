"""Serves a program that has only an inference.py in Triton's Python backend. Copied into the model repository.

`ITEM` (an encoded picture, or a text) -> `RESULT` (the JSON of its result); a batch is one run of the program.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bytes_tensors  # type: ignore[import-not-found]
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from program_runs import FailedError, Program, TooLongError  # type: ignore[import-not-found]

bytes_tensors.mend()


class TritonPythonModel:
    """One program and the processes that run it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Import what the program imports. Whether it can answer a probe shows."""
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        seconds = float(json.loads(args["model_config"])["parameters"]["run_seconds"]["string_value"])
        self.program = Program(bundle, args["model_name"], args["model_version"], seconds)
        try:
            self.program.start()
        except BaseException:
            self.program.close()
            raise

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that Triton batched with one run; with more when that one failed."""
        items = [bytes_tensors.read(request, "ITEM") for request in requests]
        return self._answer(items, time.monotonic() + self.program.seconds)

    def finalize(self) -> None:
        """It is unloaded."""
        self.program.close()

    def _answer(self, requests: Sequence[list[bytes]], deadline: float) -> list[Any]:
        try:
            results = self.program.run([item for items in requests for item in items])
        except Exception as error:
            if len(requests) > 1 and not isinstance(error, TooLongError) and time.monotonic() < deadline:
                # One of them is what it cannot bear; the others are answered.
                middle = len(requests) // 2
                return self._answer(requests[:middle], deadline) + self._answer(requests[middle:], deadline)
            refusal = pb_utils.TritonError(str(error) if isinstance(error, FailedError) else repr(error))
            return [pb_utils.InferenceResponse(error=refusal) for _ in requests]
        texts = iter([json.dumps(result).encode() for result in results])
        return [
            pb_utils.InferenceResponse([bytes_tensors.make("RESULT", [next(texts) for _ in items])])
            for items in requests
        ]
