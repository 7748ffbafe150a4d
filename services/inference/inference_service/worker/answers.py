"""The answers for one batch of samples: encoded, sent to Triton, and made results, whatever happens to Triton.

A model that is slow, or busy with what others ask, is waited for, and no more is sent to it at once than it answers in
time; no sample is blamed for an answer that is late.

A sample may kill the process of the model, again whenever it is tried. A batch that was interrupted twice is under
suspicion: it is tried alone, in halves, until the sample is found that does it. Others of this prediction wait
meanwhile, so that none is blamed for what another did; who else uses the model may be in the way, hence the tries.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from dlmesh_sdk.served import Encoded, Item

from inference_service.worker.errors import AwayError, PredictionError
from inference_service.worker.triton_client import (
    Arrays,
    Client,
    InterruptedCallError,
    LateCallError,
    RefusedCallError,
)

Row = dict[str, Any]

TRIES = 2
TRIES_ALONE = 3
# A prediction fails when its model refuses more samples than these before it answered any, however many it refuses
# later, and when more than these end its process: each takes many attempts, and others have no model meanwhile.
MAX_BLAMED = 20
# Which Triton and the model may take for a batch, all its tries together: a run of a program takes up to 120 s, and
# others ask, too.
PATIENCE_SECONDS = 3600.0
# Calls at once: so many until the model is known to answer this fast, then one more with each that it does.
FEW_CALLS, MANY_CALLS = 2, 16
QUICK_SECONDS = 5.0


class Model(Protocol):
    """`dlmesh_sdk.served.Served`, or a program."""

    @property
    def task(self) -> str: ...
    def items(self, file: Any, name: str) -> Any: ...
    def encode_alike(self, items: Sequence[Item]) -> list[Encoded]: ...
    def results(self, encoded: Encoded, outputs: Arrays, threshold: float) -> list[Row]: ...


class Answers:
    """Callable by several threads at once."""

    def __init__(self, model: Model, make_client: Callable[[], Client], threshold: float) -> None:
        self._model, self._make_client, self._threshold = model, make_client, threshold
        self._local = threading.local()
        self._clients: list[Client] = []
        self._gate = _Gate()
        self._lock = threading.Lock()
        self._killers = self._refused = 0
        self._has_answered = False
        self.is_given_up = threading.Event()
        # Of a sample that Triton was sent last.
        self.sample_bytes = 0

    def __call__(self, items: Sequence[Item]) -> list[Row]:
        """A result for each, in their order; PredictionError."""
        patience = _Patience(items, PATIENCE_SECONDS)
        for _ in range(TRIES):
            try:
                return self._try(items, self._gate.together, patience)
            except InterruptedCallError:
                self._await_model(patience)
            except RefusedCallError:
                break
        with self._gate.alone():
            return self._suspect(items, patience)

    def close(self) -> None:
        """Close the channels, which ends the calls that are running."""
        with self._lock:
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

    def _await_model(self, patience: _Patience) -> None:
        with patience.spent():
            self._client.await_model(self.is_given_up)

    def _suspect(self, items: Sequence[Item], patience: _Patience) -> list[Row]:
        words, is_killer = "", True
        for _ in range(TRIES_ALONE if len(items) == 1 else 1):
            try:
                return self._try(items, _alone_already, patience)
            except InterruptedCallError as error:
                words = f"the process of the model ended on it: {error}"
                self._await_model(patience)
            except RefusedCallError as error:
                words, is_killer = f"the model failed on it: {error}", False
                break
        if len(items) == 1:
            return [self._blame(items[0], words, is_killer=is_killer)]
        half = len(items) // 2
        return self._suspect(items[:half], patience) + self._suspect(items[half:], patience)

    def _blame(self, item: Item, words: str, *, is_killer: bool) -> Row:
        # Only who is alone comes here.
        self._killers, self._refused = self._killers + is_killer, self._refused + (not is_killer)
        if self._killers > MAX_BLAMED:
            raise PredictionError(
                f"{self._killers} samples ended the model's process, each tried alone; at the last {words}"
            )
        if self._refused > MAX_BLAMED and not self._has_answered:
            raise PredictionError(f"the model refused {self._refused} samples and answered none; at the last {words}")
        return {"sampleId": item.sample_id, "error": words}

    def _try(self, items: Sequence[Item], gate: Callable[[], Any], patience: _Patience) -> list[Row]:
        found: dict[str, Row] = {}
        for encoded in self._model.encode_alike(items):
            outputs: Arrays = {}
            if encoded.readable:
                self.sample_bytes = sum(map(_count_bytes, encoded.inputs.values())) // len(encoded.readable)
                with gate(), patience.spent():
                    if self.is_given_up.is_set():
                        raise AwayError("the prediction was given up")
                    outputs = self._client.infer(encoded.inputs, patience.seconds)
                self._has_answered = True
            try:
                found |= {row["sampleId"]: row for row in self._model.results(encoded, outputs, self._threshold)}
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise PredictionError(f"the model's answer is none: {error}") from error
        if found.keys() != {item.sample_id for item in items}:
            raise PredictionError("the model's answer is of other samples")
        return [found[item.sample_id] for item in items]


@contextmanager
def _alone_already() -> Any:
    yield


def _count_bytes(array: np.ndarray[Any, Any]) -> int:
    # Of objects an array has pointers only.
    return sum(len(element) for element in array.flat) if array.dtype == np.object_ else array.nbytes


@dataclass
class _Patience:
    """With a model that answers for these samples, or does not: the seconds that are left."""

    items: Sequence[Item]
    seconds: float

    @contextmanager
    def spent(self) -> Any:
        """What is done within counts; PredictionError when it took all that was left without an answer."""
        begun_at = time.monotonic()
        try:
            yield
        except (LateCallError, InterruptedCallError) as error:
            self.seconds -= time.monotonic() - begun_at
            if isinstance(error, LateCallError) or self.seconds <= 0:
                first, last = self.items[0].sample_id, self.items[-1].sample_id
                raise PredictionError(
                    f"the model did not answer for {PATIENCE_SECONDS:.0f} s when it was asked for the "
                    f"{len(self.items)} samples from {first} to {last}: "
                    "it is busy with other requests, or hangs on one of these"
                ) from error
            raise
        self.seconds -= time.monotonic() - begun_at


class _Gate:
    """Some together, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._together, self._most = 0, FEW_CALLS
        self._is_alone = False

    @contextmanager
    def together(self) -> Any:
        with self._condition:
            self._condition.wait_for(lambda: not self._is_alone and self._together < self._most)
            self._together += 1
        begun_at = time.monotonic()
        try:
            yield
            is_quick = time.monotonic() - begun_at < QUICK_SECONDS
            with self._condition:
                self._most = min(MANY_CALLS, self._most + 1) if is_quick else FEW_CALLS
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
