"""Triton behind `ports.ModelServer`, over its KServe v2 gRPC: our own child or one of somebody else's."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from inference_service.domain.models import TritonUnavailableError
from inference_service.triton.installation import KEY_HEADER
from inference_service.triton.messages import DEAD_STUB, QUEUE_FULL, UNKNOWN_MODEL
from inference_service.triton.probes import PARAMETER, former_probe, probe_arrays, probe_complaint
from inference_service.usecases.ports import (
    Activity,
    LoadRefusedError,
    LoadTimedOutError,
    ServerAwayError,
    ServerEndedError,
)

Result = TypeVar("Result")
Processes = Callable[[], Mapping[tuple[str, int], Sequence[int]]]

CALL_SECONDS = 10.0
PROBE_SECONDS = 60.0
# Importing torch on a busy machine, and weights of gigabytes.
LOAD_SECONDS = 300.0
LATE = "StatusCode.DEADLINE_EXCEEDED"
# A connection that broke, or that nobody took.
ENDED = "StatusCode.UNAVAILABLE"
AWAY = {ENDED, "StatusCode.CANCELLED", LATE}
# Models of users say how much they answer to a probe.
MAX_ANSWER_BYTES = 256 * 1024**2

# Triton puts this before the name that its command line gives.
GRPC_HEADER = f"triton-grpc-protocol-{KEY_HEADER}"


class TritonClient:
    """Asks the server at `address()`, which is looked up again for each call: it may come back elsewhere.

    `processes` gives the ids of the processes of models and versions, where these are our own server's, and `key` is
    what that one demands. `why_ended` says of a model why its process was ended by us, where it was.
    """

    def __init__(
        self,
        address: Callable[[], str | None],
        processes: Processes | None = None,
        load_seconds: float = LOAD_SECONDS,
        key: str = "",
        why_ended: Callable[[str], str] | None = None,
    ) -> None:
        self._address, self._processes, self._load_seconds = address, processes, load_seconds
        self._why_ended = why_ended
        self._headers = {GRPC_HEADER: key} if key else None
        self._client: Any = None
        self._client_address = ""

    def require(self) -> None:
        """There is one, or will be again."""

    async def loaded(self) -> Mapping[str, frozenset[int]]:
        index = await self._call(
            lambda client: client.get_model_repository_index(headers=self._headers, client_timeout=CALL_SECONDS)
        )
        ready: dict[str, set[int]] = {}
        for model in index.models:
            if model.state == "READY" and model.version.isdigit():
                ready.setdefault(model.name, set()).add(int(model.version))
        return {name: frozenset(versions) for name, versions in ready.items()}

    async def activity(self) -> Mapping[tuple[str, int], Activity]:
        statistics = await self._call(lambda client: client.get_inference_statistics(client_timeout=CALL_SECONDS))
        return {
            (model.name, int(model.version)): Activity(model.last_inference / 1000, model.inference_stats.fail.count)
            for model in statistics.model_stats
            if model.version.isdigit()
        }

    async def load(self, name: str) -> None:
        seconds = self._load_seconds
        if self._why_ended:
            # What ended an earlier process is no reason any more.
            self._why_ended(name)
        try:
            await self._call(
                lambda client: client.load_model(name, headers=self._headers, client_timeout=seconds), may_be_late=True
            )
        except TimeoutError as error:
            raise LoadTimedOutError(f"it was not loaded within {seconds:g} s (DLMESH_MODEL_LOAD_SECONDS)") from error
        except LoadRefusedError as error:
            raise self._explained(name, error) from error

    async def end(self, name: str, versions: Sequence[int]) -> None:
        for (model, version), pids in (self._processes() if self._processes else {}).items():
            if model == name and version in versions:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    async def unload(self, name: str) -> None:
        await self._call(lambda client: client.unload_model(name, headers=self._headers, client_timeout=CALL_SECONDS))

    async def probe(self, name: str, version: int) -> None:
        try:
            await self._probe(name, version, PROBE_SECONDS)
        except TimeoutError as error:
            raise LoadRefusedError(f"it does not answer an empty input within {PROBE_SECONDS:g} s") from error
        except LoadRefusedError as error:
            raise self._explained(name, error) from error

    def _explained(self, name: str, error: LoadRefusedError) -> LoadRefusedError:
        """Triton only sees that the process has gone."""
        reason = self._why_ended(name) if self._why_ended else ""
        return LoadRefusedError(reason) if reason else error

    def processes(self) -> Collection[tuple[str, int]] | None:
        return self._processes() if self._processes else None

    async def answers(self, name: str, version: int) -> bool | None:
        try:
            await self._probe(name, version, CALL_SECONDS)
        except TimeoutError:
            return None
        except LoadRefusedError as error:
            return DEAD_STUB not in str(error)
        return True

    async def _probe(self, name: str, version: int, seconds: float) -> None:
        from tritonclient.grpc import InferInput
        from tritonclient.utils import np_to_triton_dtype

        number = str(version)
        config = await self._call(lambda client: client.get_model_config(name, number, client_timeout=CALL_SECONDS))
        text = config.config.parameters[PARAMETER].string_value or former_probe(config.config)
        try:
            arrays = probe_arrays(text)
        except ValueError as error:
            raise LoadRefusedError(str(error)) from error
        inputs = []
        for input_name, array in arrays.items():
            inputs.append(InferInput(input_name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        answer = await self._call(
            lambda client: client.infer(name, inputs, model_version=number, client_timeout=seconds), may_be_late=True
        )
        outputs = {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}
        if complaint := probe_complaint(text, outputs):
            raise LoadRefusedError(complaint)

    async def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _call(self, call: Callable[[Any], Awaitable[Result]], *, may_be_late: bool = False) -> Result:
        """`may_be_late`: TimeoutError when its time is over, which says nothing about the server."""
        from tritonclient.utils import InferenceServerException

        client = await self._connected()
        try:
            return await call(client)
        except InferenceServerException as error:
            # A model that hangs has a full queue before long.
            if may_be_late and (error.status() == LATE or QUEUE_FULL in error.message()):
                raise TimeoutError(error.message()) from error
            # Of a version that it does not serve, it says the same as when it is away.
            if error.status() in AWAY and UNKNOWN_MODEL not in error.message():
                # One that is late, or whose client was closed, has not ended.
                kind = ServerEndedError if error.status() == ENDED else ServerAwayError
                raise kind(f"Triton does not answer: {error.message()}") from error
            raise LoadRefusedError(error.message()) from error

    async def _connected(self) -> Any:
        from tritonclient.grpc.aio import InferenceServerClient

        address = self._address()
        if address is None:
            raise ServerAwayError("Triton has not been started yet")
        if self._client is None or address != self._client_address:
            await self.close()
            # A restarted server must be found again at once, not after a backoff of up to two minutes.
            options = [
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.max_metadata_size", 1024 * 1024),
            ]
            options += [("grpc.max_receive_message_length", MAX_ANSWER_BYTES), ("grpc.max_send_message_length", -1)]
            self._client = InferenceServerClient(address, channel_args=options)
            self._client_address = address
        return self._client


class NoTriton:
    """There is no server; everything says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def require(self) -> None:
        raise TritonUnavailableError(self._reason)

    async def loaded(self) -> Mapping[str, frozenset[int]]:
        raise ServerAwayError(self._reason)

    async def activity(self) -> Mapping[tuple[str, int], Activity]:
        raise ServerAwayError(self._reason)

    async def load(self, name: str) -> None:
        raise ServerAwayError(self._reason)

    async def end(self, name: str, versions: Sequence[int]) -> None:
        raise ServerAwayError(self._reason)

    async def unload(self, name: str) -> None:
        raise ServerAwayError(self._reason)

    async def probe(self, name: str, version: int) -> None:
        raise ServerAwayError(self._reason)

    def processes(self) -> Collection[tuple[str, int]] | None:
        return None

    async def answers(self, name: str, version: int) -> bool | None:
        raise ServerAwayError(self._reason)

    async def close(self) -> None:
        """Nothing is open."""
