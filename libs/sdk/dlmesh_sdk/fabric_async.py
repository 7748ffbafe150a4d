"""Elastic training of torch modules without steps in common: the mode ASYNC.

The first worker's process keeps the weights and the program's optimizer, and a thread for each other worker. A worker
takes the next batch that nobody has taken, with the weights of that moment, and brings its gradients when it has them.
Nobody waits for anybody else.

- A batch has `global batch / most workers` samples, whatever the number of workers; each batch of an epoch counts once.
- The staleness of gradients is how many steps were made since their weights were taken. A step is made with the
  learning rates times the batch's share of a global batch, or 1 / (1 + staleness) where that is less. So the steps of
  a global batch go about as far as one step of SYNC, with any optimizer and any number of workers. Adam and others
  that divide gradients by their size would take no notice of smaller gradients.
- Gradients staler than DLMESH_ASYNC_MAX_STALENESS (16) are dropped; their batch goes to whoever asks next.
- Moving means (of batch normalization) are those of the first worker, where callbacks are called, too.
- A checkpoint holds weights, optimizer and the batches that were taken and not brought; these are taken again.
"""

from __future__ import annotations

import contextlib
import copy
import os
import secrets
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any, Protocol

import numpy as np
import torch
import workerkit
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from dlmesh_sdk.fabric_training import ElasticRun
from dlmesh_sdk.gang import Gang
from dlmesh_sdk.interruptions import STOPPED, end_stopped
from dlmesh_sdk.program_logs import say
from dlmesh_sdk.sharded_batches import ShardedBatches

DEFAULT_MAX_STALENESS = 16
# In the place of a batch's number: there is none, and none because a stop was requested.
NONE_LEFT, STOPPING = -1, -2
# Number of the batch, steps that the weights after it have seen.
_TASK = struct.Struct("<qq")
# Number of the batch, steps that its weights had seen, loss, accuracy, a stop was requested; then the gradients.
_RESULT = struct.Struct("<qqff?")
_POLL_SECONDS = 0.1
_WRITTEN = "dlmesh-weights-are-written"


class ParameterServer:
    """Weights, optimizer, and which batches are to be done. Any thread may call it.

    `share` is the part of a global batch (0 to 1] that a batch is.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        total: int,
        max_staleness: int = DEFAULT_MAX_STALENESS,
        share: float = 1.0,
    ) -> None:
        self._parameters, self._optimizer = parameters, optimizer
        self.total, self.max_staleness, self.share = total, max_staleness, share
        # Held by whoever needs weights and learning rates that nobody changes.
        self.lock = threading.RLock()
        self.step = self.dropped = self.staleness_sum = 0
        self.is_stopping = False
        self._next = 0
        self._again: list[int] = []
        self._taken: set[int] = set()
        self._measured: list[tuple[float, float]] = []

    def resume(self, step: int, unfinished: Sequence[int]) -> None:
        """Go on after `step` steps; the batches `unfinished` were taken before and are to be done again."""
        self.step, self._next, self._again = step, step + len(unfinished), sorted(unfinished)

    @property
    def unfinished(self) -> list[int]:
        """The batches that were taken and whose gradients have not come."""
        return sorted([*self._again, *self._taken])

    def take(self) -> tuple[int, int, Tensor]:
        """The next batch (or NONE_LEFT, STOPPING), the steps that the weights have seen, the weights [n] float32."""
        with self.lock:
            if self.is_stopping:
                number = STOPPING
            elif self._again:
                number = self._again.pop(0)
            elif self._next < self.total:
                number, self._next = self._next, self._next + 1
            else:
                number = NONE_LEFT
            if number >= 0:
                self._taken.add(number)
            return number, self.step, flat(self._parameters)

    def bring(self, number: int, seen: int, gradients: Tensor, loss: float, right: float) -> bool:
        """Make a step of the gradients [n] of batch `number`; False when they were too stale: it will be done again."""
        with self.lock:
            self._taken.discard(number)
            staleness = self.step - seen
            if staleness > self.max_staleness:
                self.dropped += 1
                self._again.append(number)
                return False
            self.staleness_sum += staleness
            for parameter, part in zip(self._parameters, parts_of(gradients, self._parameters), strict=True):
                parameter.grad = part.to(parameter)
            with _scaled_rates(self._optimizer, min(self.share, 1 / (1 + staleness))):
                self._optimizer.step()
            self.step += 1
            self._measured.append((loss, right))
            return True

    def measured(self) -> tuple[float, float]:
        """Mean loss and accuracy of the steps since the last call."""
        with self.lock:
            means = np.mean(self._measured or [(0.0, 0.0)], axis=0)
            self._measured.clear()
        return float(means[0]), float(means[1])


class Link(Protocol):
    """A worker's way to the server."""

    def exchange(
        self, number: int, seen: int, gradients: Tensor, loss: float, right: float, *, stop: bool
    ) -> tuple[int, int, Tensor]:
        """Bring the gradients of a batch (NONE_LEFT: there are none yet) and take the next, as the server's `take`."""


class LocalLink:
    """Within the server's process."""

    def __init__(self, server: ParameterServer) -> None:
        self._server = server

    def exchange(
        self, number: int, seen: int, gradients: Tensor, loss: float, right: float, *, stop: bool
    ) -> tuple[int, int, Tensor]:
        """As Link."""
        server = self._server
        server.is_stopping |= stop
        if number >= 0:
            server.bring(number, seen, gradients, loss, right)
        return server.take()


class RemoteLink:
    """From another process or machine; OSError or EOFError when the server has gone."""

    def __init__(self, host: str, port: int, key: bytes) -> None:
        self._connection = Client((host, port), authkey=key)

    def exchange(
        self, number: int, seen: int, gradients: Tensor, loss: float, right: float, *, stop: bool
    ) -> tuple[int, int, Tensor]:
        """As Link."""
        header = _RESULT.pack(number, seen, loss, right, stop)
        self._connection.send_bytes(header + gradients.cpu().numpy().tobytes())
        answer = self._connection.recv_bytes()
        next_number, next_seen = _TASK.unpack_from(answer)
        return next_number, next_seen, _tensor(answer, _TASK.size)


class Desk:
    """Serves the other workers, each by a thread of its own; `close` when they have left.

    What else connects to the port (it has not the key, or says nothing) is let go and holds nobody up.
    """

    def __init__(self, server: ParameterServer, workers: int, host: str, key: bytes) -> None:
        self._link, self._key = LocalLink(server), key
        # The key is asked for by each connection's thread: a silent one would keep all others waiting here.
        self._listener = Listener((host, 0), backlog=workers + 1)
        self.port = int(self._listener.address[1])
        self._workers, self._left = workers, 0
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._is_closed = False
        if workers:
            threading.Thread(target=self._accept, daemon=True).start()

    def is_empty(self) -> bool:
        """True when all workers have left; RuntimeError when one was lost."""
        if self._failure is not None:
            raise RuntimeError(f"a worker was lost: {self._failure!r}") from self._failure
        return self._left == self._workers

    def close(self) -> None:
        """Accept nobody any more."""
        self._is_closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection = self._listener.accept()
            except OSError:
                # It was closed, or something connected and was gone again.
                time.sleep(_POLL_SECONDS)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with connection:
            try:
                deliver_challenge(connection, self._key)
                answer_challenge(connection, self._key)
            except (AuthenticationError, EOFError, OSError):
                return
            try:
                self._answer(connection)
            except BaseException as failure:
                self._failure = failure
                return
        with self._lock:
            self._left += 1

    def _answer(self, connection: Connection) -> None:
        number = 0
        while number >= 0:
            message = connection.recv_bytes()
            brought, seen, loss, right, stop = _RESULT.unpack_from(message)
            number, steps, weights = self._link.exchange(
                brought, seen, _tensor(message, _RESULT.size), loss, right, stop=stop
            )
            connection.send_bytes(_TASK.pack(number, steps) + weights.cpu().numpy().tobytes())


class AsyncRun(ElasticRun):
    """One worker; the first one's process is also the server's."""

    @property
    def checkpoint_gang(self) -> Gang:
        # The first worker writes alone, the others are somewhere in their batches; they are given their weights.
        return replace(self.gang, world_size=1)

    def module_that_computes(self) -> nn.Module:
        return copy.deepcopy(self.module) if self.gang.is_first else self.module

    def optimizer_state(self) -> dict[str, Any]:
        with self._server.lock:
            return copy.deepcopy(self.optimizer.state_dict())

    def step_size(self) -> int:
        return max(1, self.sizing.global_batch_size // self.sizing.max_workers)

    # Of the batch so far: a step function may make several steps.
    _gradients: Tensor

    def tell(self, name: str, *arguments: Any) -> None:
        # A callback may change learning rates, which are others while another worker's step is made.
        with self._server.lock if self.gang.is_first else contextlib.nullcontext():
            super().tell(name, *arguments)

    def apply_gradients(self) -> None:
        self._gradients = self._gradients + flat([_gradient(parameter) for parameter in self._own])

    def to_the_end(self) -> None:
        self._own = [parameter for parameter in self.worker.parameters() if parameter.requires_grad]
        self._batches = lru_cache(2)(self._batches_of)
        if self.gang.is_first:
            most = int(os.environ.get("DLMESH_ASYNC_MAX_STALENESS") or DEFAULT_MAX_STALENESS)
            kept = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
            share = min(1.0, self.batch_size / self.sizing.global_batch_size)
            self._server = ParameterServer(kept, self.optimizer, self.total, most, share)
            self._server.resume(self.step, self.resumed.get("unfinished", []))
        self.begin()
        if self.gang.is_first:
            self._keep_and_work()
        else:
            host = os.environ["MASTER_ADDR"]
            port, key = self.gang.share("").split()
            self._work(RemoteLink(host, int(port), key.encode()))
        self._wait_for_the_weights()
        self.gang.leave()

    def _wait_for_the_weights(self) -> None:
        """Collective: nobody goes on before the first worker has written them; its last test may take any time."""
        if self.gang.world_size == 1:
            return
        store: Any = distributed_c10d._get_default_store()
        if self.gang.is_first:
            store.set(_WRITTEN, "")
            return
        # The store may have gone with the first worker, which had written them then.
        with contextlib.suppress(RuntimeError):
            while not store.check([_WRITTEN]):
                if self.gang.stop_requested:
                    sys.exit(STOPPED)
                workerkit.heartbeat()
                time.sleep(_POLL_SECONDS)

    def _keep_and_work(self) -> None:
        server = self._server
        # An end of an epoch may not have been told yet when everything was kept.
        self._epochs_told = int(self.resumed.get("epochs_told", self.step // self.per_epoch))
        self._counted = self._kept = self.step
        if not self.step:
            self.tell("on_epoch_begin", 0)
        key = secrets.token_hex(16)
        desk = Desk(server, self.gang.world_size - 1, os.environ.get("MASTER_ADDR") or "127.0.0.1", key.encode())
        self.gang.share(f"{desk.port} {key}")
        try:
            self._work(LocalLink(server), desk)
            while not desk.is_empty():
                threading.Event().wait(_POLL_SECONDS)
                self._look_up()
            if server.is_stopping:
                self._save()
                end_stopped(self.checkpoints, server.step, self.total)
            self._look_up()
            mean = server.staleness_sum / max(1, server.step)
            say(f"ASYNC: {server.step} steps, mean staleness {mean:.2f}, {server.dropped} dropped")
            self._refresh()
            self.complete(replace(self.gang, world_size=1))
        finally:
            desk.close()

    def _work(self, link: Link, desk: Desk | None = None) -> None:
        number, seen, gradients = NONE_LEFT, 0, torch.zeros(0)
        loss = right = 0.0
        while True:
            number, seen, weights = link.exchange(number, seen, gradients, loss, right, stop=self.gang.stop_requested)
            if number < 0:
                break
            workerkit.heartbeat()
            load(weights, self._own)
            epoch, place = divmod(number, self.per_epoch)
            torch.manual_seed(self.seed + (number << 10))
            batches = self._batches(epoch)
            self._gradients = torch.zeros(())
            batch = self.collate([self.train_data[index] for index in batches[place]])
            measured = self.train_on(batch, batches)
            loss, right, gradients = float(measured[0]), float(measured[1]), self._gradients
            if desk is not None:
                desk.is_empty()
                self._look_up()
        if number == STOPPING and not self.gang.is_first:
            sys.exit(STOPPED)

    def _look_up(self) -> None:
        """What the first worker does beside its batches: reports, ends of epochs, checkpoints."""
        workerkit.heartbeat()
        server = self._server
        self.step = server.step
        epoch = min(self.step // self.per_epoch, self.sizing.epochs - 1)
        samples, self._counted = (self.step - self._counted) * self.batch_size, self.step
        if self.step and self.monitor and self.monitor.is_due(self.step, samples):
            loss, right = server.measured()
            with server.lock:
                rate = self.optimizer.param_groups[0]["lr"]
            self.monitor.train(self.step, loss, right, learning_rate=rate)
            self.loggers.trained({"loss": loss, "accuracy": right}, self.step, epoch + 1)
        while self._epochs_told < self.step // self.per_epoch:
            self._refresh()
            self.end_epoch(self._epochs_told, replace(self.gang, world_size=1))
            self._epochs_told += 1
            if self._epochs_told < self.sizing.epochs:
                self.tell("on_epoch_begin", self._epochs_told)
        # Steps are others' as well: one that ends an interval may never be seen here.
        interval = self.checkpoints.interval_steps
        if self.step // interval > self._kept // interval if interval else self.checkpoints.due():
            self._save()

    def _save(self) -> None:
        self.checkpoints.finish()
        with self._server.lock:
            self._copy_means()
            self._kept = self._server.step
            self.save(self._kept, unfinished=self._server.unfinished, epochs_told=self._epochs_told)

    def _refresh(self) -> None:
        """Make both modules of the first worker the same: weights of the server, moving means of the worker."""
        with self._server.lock:
            self._copy_means()
            self.worker.load_state_dict(self.module.state_dict())

    def _copy_means(self) -> None:
        with torch.no_grad():
            for kept, own in zip(self.module.buffers(), self.worker.buffers(), strict=True):
                kept.copy_(own)

    def _batches_of(self, epoch: int) -> list[list[int]]:
        return list(ShardedBatches(len(self.train_data), self.batch_size, 0, 1, seed=self.seed, epoch=epoch))


@contextlib.contextmanager
def _scaled_rates(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """The learning rate of each parameter group times `factor`, and again what it was."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        # A new object, also where the rate is a tensor.
        group["lr"] = group["lr"] * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them one after the other [n], float32, copied."""
    with torch.no_grad():
        return torch.cat([tensor.reshape(-1).to(torch.float32) for tensor in tensors])


def parts_of(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """`values` [n] in the shapes of the tensors they were made of."""
    parts = values.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def load(weights: Tensor, parameters: Sequence[Tensor]) -> None:
    """Put `weights` [n] into the parameters."""
    with torch.no_grad():
        for parameter, part in zip(parameters, parts_of(weights, parameters), strict=True):
            parameter.copy_(part)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _tensor(message: bytes, offset: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(message, np.float32, offset=offset).copy())
