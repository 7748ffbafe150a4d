"""The answers for one batch of samples: encoded, sent to Triton, and made results, whatever happens to Triton.

A sample may kill the process of the model, again whenever it is tried. A batch that was interrupted twice is under
suspicion: it is tried alone, in halves, until the sample is found that does it. Others of this prediction wait
meanwhile, so that none is blamed for what another did; who else uses the model may be in the way, hence the tries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from dlmesh_sdk.served import Encoded, Item

from inference_service.worker.errors import PredictionError
from inference_service.worker.triton_client import Arrays, Client, InterruptedCallError, RefusedCallError

Row = dict[str, Any]

TRIES = 2
TRIES_ALONE = 3
# A model that fails at every sample fails the prediction, and so does one that takes many attempts to keep alive.
MAX_BLAMED = 20


class Model(Protocol):
    """`dlmesh_sdk.served.Served`, or a program."""

    @property
    def task(self) -> str: ...
    def items(self, file: Any, name: str) -> Any: ...
    def encode(self, items: Sequence[Item]) -> Encoded: ...
    def results(self, encoded: Encoded, outputs: Arrays, threshold: float) -> list[Row]: ...


class Answers:
    """Callable by several threads at once."""

    def __init__(self, model: Model, make_client: Callable[[], Client], threshold: float) -> None:
        self._model, self._make_client, self._threshold = model, make_client, threshold
        self._local = threading.local()
        self._clients: list[Client] = []
        self._gate = _Gate()
        self._lock = threading.Lock()
        self._blamed = 0
        self._has_answered = False
        self.is_given_up = threading.Event()
        # Of a sample that Triton was sent last.
        self.sample_bytes = 0

    def __call__(self, items: Sequence[Item]) -> list[Row]:
        """A result for each, in their order; PredictionError."""
        for _ in range(TRIES):
            try:
                return self._try(items, self._gate.together)
            except InterruptedCallError:
                self._client.await_model(self.is_given_up)
            except RefusedCallError:
                break
        with self._gate.alone():
            return self._suspect(items)

    def close(self) -> None:
        """Close the channels; no call may be running."""
        for client in self._clients:
            client.close()

    @property
    def _client(self) -> Client:
        # A client is not for several threads.
        if not hasattr(self._local, "client"):
            self._local.client = self._make_client()
            with self._lock:
                self._clients.append(self._local.client)
        client: Client = self._local.client
        return client

    def _suspect(self, items: Sequence[Item]) -> list[Row]:
        words, is_killer = "", True
        for _ in range(TRIES_ALONE if len(items) == 1 else 1):
            if self.is_given_up.is_set():
                raise PredictionError("the prediction was given up")
            try:
                return self._try(items, _alone_already)
            except InterruptedCallError as error:
                words = f"the process of the model ended on it: {error}"
                self._client.await_model(self.is_given_up)
            except RefusedCallError as error:
                words, is_killer = f"the model failed on it: {error}", False
                break
        if len(items) == 1:
            return [self._blame(items[0], words, is_killer=is_killer)]
        half = len(items) // 2
        return self._suspect(items[:half]) + self._suspect(items[half:])

    def _blame(self, item: Item, words: str, *, is_killer: bool) -> Row:
        # Only who is alone comes here.
        self._blamed += 1
        if self._blamed > MAX_BLAMED and (is_killer or not self._has_answered):
            raise PredictionError(f"{self._blamed} samples were tried alone without an answer; at the last {words}")
        return {"sampleId": item.sample_id, "error": words}

    def _try(self, items: Sequence[Item], gate: Callable[[], Any]) -> list[Row]:
        encoded = self._model.encode(items)
        outputs: Arrays = {}
        if encoded.readable:
            self.sample_bytes = sum(each.nbytes for each in encoded.inputs.values()) // len(encoded.readable)
            with gate():
                outputs = self._client.infer(encoded.inputs)
            self._has_answered = True
        try:
            rows = self._model.results(encoded, outputs, self._threshold)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise PredictionError(f"the model's answer is none: {error}") from error
        if [row.get("sampleId") for row in rows] != [item.sample_id for item in items]:
            raise PredictionError("the model's answer is of other samples")
        return rows


@contextmanager
def _alone_already() -> Any:
    yield


class _Gate:
    """Many together, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._together = 0
        self._is_alone = False

    @contextmanager
    def together(self) -> Any:
        with self._condition:
            self._condition.wait_for(lambda: not self._is_alone)
            self._together += 1
        try:
            yield
        finally:
            with self._condition:
                self._together -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Any:
        with self._condition:
            self._condition.wait_for(lambda: not self._is_alone)
            self._is_alone = True
            self._condition.wait_for(lambda: not self._together)
        try:
            yield
        finally:
            with self._condition:
                self._is_alone = False
                self._condition.notify_all()
