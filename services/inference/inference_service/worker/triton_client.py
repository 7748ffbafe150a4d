"""One model of Triton, asked by one thread; which failures pass, and which are the model's."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from inference_service.triton.addresses import read_grpc_address
from inference_service.triton.messages import DEAD_STUB, NOT_READY, QUEUE_FULL
from inference_service.worker.errors import AwayError

Arrays: TypeAlias = Mapping[str, np.ndarray[Any, Any]]

LOOK_SECONDS = 10.0
# For a Triton that restarts: the supervisor is back within seconds, importing torch takes some more.
PATIENCE_SECONDS = 120.0
RETRY_SECONDS = 0.25
# While the server starts it does not listen, then it does not know the model, then the model is not ready.
PASSING = {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND", "StatusCode.CANCELLED"}
# Also beside the tensors of models that take them.
ITEM = "ITEM"
RESULT = "RESULT"


class InterruptedCallError(Exception):
    """The server or the process of the model went away before it answered."""


class LateCallError(Exception):
    """No answer in time: who was asked is busy, or hangs."""


class RefusedCallError(Exception):
    """The model answered with an error, or Triton refuses what it was sent; their own words."""


class Client:
    """Not for several threads, but for `close`.

    The address is looked up again when nobody answers: Triton may come back elsewhere.
    """

    def __init__(self, address_file: Path, model_name: str, model_version: int) -> None:
        self._address_file = address_file
        self._model_name, self._model_version = model_name, str(model_version)
        self._client: Any = None
        self._address = ""
        self._lock = threading.Lock()
        self._is_closed = False

    def infer(self, inputs: Arrays, seconds: float) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name, [n, ...] of inputs [n, ...].

        InterruptedCallError, RefusedCallError; LateCallError after `seconds`.
        """
        return self._infer(inputs, seconds)

    def await_model(self, is_given_up: threading.Event) -> None:
        """Until the model answers anything; AwayError when it does not for two minutes, or nobody waits."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_given_up.is_set():
            try:
                self._infer(self._zeros(), LOOK_SECONDS)
                return
            except (RefusedCallError, LateCallError):
                # Who refuses lives, and so does who is busy.
                return
            except InterruptedCallError as error:
                if time.monotonic() > deadline:
                    raise AwayError(f"Triton did not answer for {PATIENCE_SECONDS:.0f} s: {error}") from error
            is_given_up.wait(RETRY_SECONDS)
        raise AwayError("the prediction was given up")

    def max_batch_size(self) -> int:
        """Most samples of one request; InterruptedCallError, LateCallError."""
        config = self._ask("get_model_config", LOOK_SECONDS, self._model_name, self._model_version)
        return int(config.config.max_batch_size)

    def close(self) -> None:
        """Close the channel for good; a call that is running is interrupted."""
        with self._lock:
            self._is_closed = True
            self._disconnect()

    def _zeros(self) -> dict[str, np.ndarray[Any, Any]]:
        """The least that the model takes."""
        metadata = self._ask("get_model_metadata", LOOK_SECONDS, self._model_name, self._model_version)
        tensors = [each for each in metadata.inputs if each.name != ITEM] or metadata.inputs
        found = {}
        for each in tensors:
            shape = [max(1, side) for side in each.shape]
            kind = triton_to_np_dtype(each.datatype)
            found[each.name] = np.full(shape, b"", np.object_) if kind is np.object_ else np.zeros(shape, kind)
        return found

    def _infer(self, inputs: Arrays, seconds: float) -> dict[str, np.ndarray[Any, Any]]:
        tensors = []
        for name, values in inputs.items():
            tensor = triton.InferInput(name, list(values.shape), _datatype(values))
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        deadline = time.monotonic() + seconds
        while (answer := self._ask_unless_full(deadline, tensors)) is None:
            time.sleep(RETRY_SECONDS)
        return {each.name: answer.as_numpy(each.name) for each in answer.get_response().outputs}

    def _ask_unless_full(self, deadline: float, tensors: list[Any]) -> Any:
        """None when so many others ask the model that it takes no more now."""
        seconds = max(deadline - time.monotonic(), 0.001)
        try:
            return self._ask("infer", seconds, self._model_name, tensors, self._model_version)
        except InterruptedCallError as error:
            if QUEUE_FULL not in str(error):
                raise
            if time.monotonic() > deadline:
                raise LateCallError(str(error)) from error
        return None

    def _ask(self, method: str, seconds: float, *arguments: Any) -> Any:
        try:
            return getattr(self._connected(), method)(*arguments, client_timeout=seconds)
        except InferenceServerException as error:
            words = str(error.message())
            if error.status() == "StatusCode.DEADLINE_EXCEEDED":
                raise LateCallError(words) from error
            # The service loads again what has no process any more.
            if error.status() in PASSING or NOT_READY in words or DEAD_STUB in words:
                raise InterruptedCallError(words) from error
            raise RefusedCallError(words) from error

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Any:
        with self._lock:
            if self._is_closed:
                raise InterruptedCallError("the prediction was given up")
            return self._connect()

    def _connect(self) -> Any:
        address = read_grpc_address(self._address_file)
        if address is None:
            raise InterruptedCallError("no address was published")
        if self._client is None or address != self._address:
            self._disconnect()
            options = [
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.max_metadata_size", 1024 * 1024),
            ]
            options += [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._client = triton.InferenceServerClient(address, channel_args=options)
            self._address = address
        return self._client


def _datatype(values: np.ndarray[Any, Any]) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return str(np_to_triton_dtype(values.dtype))
