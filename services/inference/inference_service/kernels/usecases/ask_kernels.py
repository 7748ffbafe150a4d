"""Give a task to a model's kernels, and say why there is no answer."""

from __future__ import annotations

from uuid import uuid4

from servicekit.errors import Code, ServiceError, conflict, timed_out, too_large, too_many
from servicekit.identity import current_identity

from inference_service.kernels.domain.models import KIND, MAX_MESSAGE_LENGTH, KernelModel
from inference_service.kernels.domain.pools import (
    NO_LIMIT,
    KernelFailedError,
    KernelPools,
    KernelTask,
    NotStartedError,
    QueueFullError,
    TaskTimeoutError,
)
from inference_service.kernels.usecases.model_queries import KernelModelQueries
from inference_service.kernels.usecases.started_kernels import StartedKernels

# What a batch may take that has no limit of its own.
LONGEST_SECONDS = 24 * 3600.0


class AskKernels:
    """Tasks of callers who may use the model. A task waits `patience_seconds` for a kernel, and runs as long as its
    model's profile lets a batch run."""

    def __init__(
        self,
        queries: KernelModelQueries,
        started: StartedKernels,
        pools: KernelPools,
        *,
        max_input_bytes: int,
        patience_seconds: float = 60.0,
    ) -> None:
        self._queries, self._started, self._pools = queries, started, pools
        self._max_input_bytes, self._patience_seconds = max_input_bytes, patience_seconds

    async def model(self, name: str) -> KernelModel:
        """A model that takes tasks of the caller; 404, 403, 409."""
        model = await self._started.find(name)
        if model is None:
            model = await self._queries.get(name)
        current_identity().require_access(KIND, name, model.owner)
        model.require_started()
        return model

    async def __call__(
        self, name: str, task_input: str, *, task_id: str = "", session_id: str = "", most_seconds: float | None = None
    ) -> str:
        """The kernel's output; 404, 403, 409, 413, 429, 504, and 500 with the kernel's words."""
        return await self.ask(await self.model(name), task_input, task_id, session_id, most_seconds)

    async def ask(
        self,
        model: KernelModel,
        task_input: str,
        task_id: str = "",
        session_id: str = "",
        most_seconds: float | None = None,
    ) -> str:
        """The same, of a model that `model` gave."""
        size = len(task_input.encode())
        if size > self._max_input_bytes:
            raise too_large("body", f"{size} bytes", f"at most {self._max_input_bytes} bytes for one task")
        running = model.profile.policy.task_execution_timeout_seconds
        seconds = self._patience_seconds + (LONGEST_SECONDS if running == NO_LIMIT else running)
        task = KernelTask(
            id=task_id or uuid4().hex,
            input=task_input,
            session_id=session_id,
            timeout_seconds=min(seconds, most_seconds or seconds),
        )
        facts = {"name": model.name, "task": task.id}
        try:
            return await self._pools.submit(model.uid, task)
        except QueueFullError as error:
            raise too_many(f"{KIND} {model.name!r}: {error}", metadata=facts) from error
        except TaskTimeoutError as error:
            raise timed_out(f"{KIND} {model.name!r}: {error}", metadata=facts) from error
        except NotStartedError as error:
            message = f"{KIND} {model.name!r} takes no tasks now: {error}"
            raise conflict(message, reason="WRONG_STATE", metadata=facts) from error
        except KernelFailedError as error:
            words = str(error)[-MAX_MESSAGE_LENGTH:]
            message = f"the kernel of {KIND} {model.name!r} failed: {words}"
            raise ServiceError(Code.INTERNAL, "KERNEL_FAILED", message, facts) from error
