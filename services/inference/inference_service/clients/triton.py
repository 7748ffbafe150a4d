"""Triton behind `ports.ModelServer`, over its KServe v2 gRPC: our own child or one of somebody else's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from inference_service.domain.models import TritonUnavailableError
from inference_service.triton.probes import PARAMETER, probe_arrays, probe_complaint
from inference_service.usecases.ports import LoadRefusedError, ServerAwayError

Result = TypeVar("Result")

CALL_SECONDS = 10.0
PROBE_SECONDS = 60.0
# Importing torch on a busy machine, and weights of gigabytes.
LOAD_SECONDS = 600.0
# The Python process of a model was killed, by the kernel for its memory say; Triton itself never starts it again.
DEAD_STUB = "is not healthy"
AWAY = {"StatusCode.UNAVAILABLE", "StatusCode.CANCELLED", "StatusCode.DEADLINE_EXCEEDED"}


class TritonClient:
    """Asks the server at `address()`, which is looked up again for each call: it may come back elsewhere."""

    def __init__(self, address: Callable[[], str | None]) -> None:
        self._address = address
        self._client: Any = None
        self._client_address = ""

    def require(self) -> None:
        """There is one, or will be again."""

    async def loaded(self) -> set[str]:
        index = await self._call(lambda client: client.get_model_repository_index(client_timeout=CALL_SECONDS))
        return {model.name for model in index.models if model.state == "READY"}

    async def load(self, name: str) -> None:
        await self._call(lambda client: client.load_model(name, client_timeout=LOAD_SECONDS))

    async def unload(self, name: str) -> None:
        await self._call(lambda client: client.unload_model(name, client_timeout=CALL_SECONDS))

    async def probe(self, name: str) -> None:
        from tritonclient.grpc import InferInput
        from tritonclient.utils import np_to_triton_dtype

        probe = await self._call(lambda client: client.get_model_config(name, client_timeout=CALL_SECONDS))
        text = probe.config.parameters[PARAMETER].string_value
        inputs = []
        for input_name, array in probe_arrays(text).items():
            inputs.append(InferInput(input_name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        answer = await self._call(lambda client: client.infer(name, inputs, client_timeout=PROBE_SECONDS))
        outputs = {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}
        if complaint := probe_complaint(text, outputs):
            raise LoadRefusedError(complaint)

    async def has_died(self, name: str) -> bool:
        try:
            await self.probe(name)
        except LoadRefusedError as error:
            return DEAD_STUB in str(error)
        return False

    async def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _call(self, call: Callable[[Any], Awaitable[Result]]) -> Result:
        from tritonclient.utils import InferenceServerException

        client = await self._connected()
        try:
            return await call(client)
        except InferenceServerException as error:
            if error.status() in AWAY:
                raise ServerAwayError(f"Triton does not answer: {error.message()}") from error
            raise LoadRefusedError(error.message()) from error

    async def _connected(self) -> Any:
        from tritonclient.grpc.aio import InferenceServerClient

        address = self._address()
        if address is None:
            raise ServerAwayError("Triton has not been started yet")
        if self._client is None or address != self._client_address:
            await self.close()
            # A restarted server must be found again at once, not after a backoff of up to two minutes.
            options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
            options += [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._client = InferenceServerClient(address, channel_args=options)
            self._client_address = address
        return self._client


class NoTriton:
    """There is no server; everything says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def require(self) -> None:
        raise TritonUnavailableError(self._reason)

    async def loaded(self) -> set[str]:
        raise ServerAwayError(self._reason)

    async def load(self, name: str) -> None:
        raise ServerAwayError(self._reason)

    async def unload(self, name: str) -> None:
        raise ServerAwayError(self._reason)

    async def probe(self, name: str) -> None:
        raise ServerAwayError(self._reason)

    async def has_died(self, name: str) -> bool:
        raise ServerAwayError(self._reason)

    async def close(self) -> None:
        """Nothing is open."""
