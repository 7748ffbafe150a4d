"""A job: what was asked for, what became of it, and which moves are legal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from servicekit.errors import conflict

from scheduling_service.domain.gpus import WHOLE, Placement


class State(StrEnum):
    """States of a job; the last three are final."""

    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    ERROR = "ERROR"
    KILLED = "KILLED"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({State.FINISHED, State.ERROR, State.KILLED})
# RUNNING -> SUBMITTED is a retry or a resize: the job waits again for its gang.
_MOVES: Mapping[State, frozenset[State]] = {
    State.SUBMITTED: frozenset({State.RUNNING, State.KILLED, State.ERROR}),
    State.RUNNING: frozenset({State.SUBMITTED, State.FINISHED, State.ERROR, State.KILLED}),
}

MAX_PLATFORM_LOSSES = 20
RETRY_SECONDS = (0.0, 1.0, 5.0, 15.0, 60.0)


@dataclass(frozen=True)
class Spec:
    """What to run; see JobSpec in jobs.proto."""

    name: str
    kind: str
    owner: str
    ranks: int
    command: Sequence[str]
    gpus_per_rank: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = ""
    max_restarts: int = 0
    grace_seconds: float = 10.0
    warm: bool = False
    model: str = ""
    dataset: str = ""
    framework: str = ""
    max_seconds: float = 0.0
    application_name: str = ""
    min_ranks: int = 0
    max_silent_seconds: float = 0.0
    max_disk_bytes: int = 0
    gpu_percentage: int = 0
    priority: int = 0
    after: Sequence[str] = ()
    memory_bytes_per_rank: int = 0
    cores_per_rank: float = 0.0
    study: str = ""

    @property
    def fewest_ranks(self) -> int:
        """With how many it can run; `ranks` unless it is elastic."""
        return self.min_ranks or self.ranks

    @property
    def is_elastic(self) -> bool:
        """True when the number of ranks may change while it runs."""
        return self.fewest_ranks < self.ranks

    @property
    def gpu_share(self) -> int:
        """Per cent of each of its GPUs that a rank takes."""
        return self.gpu_percentage or WHOLE

    @property
    def gpus_of_rank(self) -> int:
        """GPUs that a rank asks for: one that it shares, or whole ones."""
        return 1 if self.gpu_share < WHOLE else self.gpus_per_rank


@dataclass(frozen=True)
class Progress:
    """Counts a worker reported."""

    done: float = 0.0
    total: float = 0.0
    phase: str = ""


@dataclass(frozen=True)
class Reported:
    """What a worker said of its attempt; None where it said nothing. `warning` is a line for people; of the
    `not_finite_series` the newest value is no number."""

    progress: Progress | None = None
    result_json: str | None = None
    warning: str | None = None
    not_finite_series: Sequence[str] | None = None


@dataclass(frozen=True)
class Rank:
    """How a rank of the newest attempt ended; a negative code is the signal that ended it, None: it was not seen. Why
    the attempt failed is the code of the one that `is_cause`."""

    rank: int
    pid: int
    exit_code: int | None
    is_cause: bool = False


@dataclass
class Job:
    """A row of the queue. Times are aware UTC; `attempt` counts from 1, 0 before the first.

    `current_ranks` and `gpus` (empty without) are those of the newest attempt; `resizing` says that it ends so that the
    next has another number. `sequence` counts submissions. `application_id` and `driver_id` are what the engine calls
    the newest attempt, empty until it has told. `suspending` says that the attempt ends to make room for others,
    `is_backfill` that it passed one that could not start. `reason` says why there is another attempt, or how the job
    ended; `waits_because` what it waits for now, empty where the queue did not look. `waits_for` are the jobs of
    `spec.after` that have not finished yet.
    """

    id: str
    spec: Spec
    group_id: str
    created_at: datetime
    state: State = State.SUBMITTED
    reason: str = ""
    attempt: int = 0
    program_failures: int = 0
    platform_losses: int = 0
    stop_requested: bool = False
    not_before: datetime | None = None
    progress: Progress = field(default_factory=Progress)
    result_json: str = ""
    warning: str = ""
    log_tail: str = ""
    ranks: Sequence[Rank] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    current_ranks: int = 0
    resizing: bool = False
    attempt_started_at: datetime | None = None
    gpus: Placement = ()
    application_id: str = ""
    driver_id: str = ""
    sequence: int = 0
    suspending: bool = False
    is_backfill: bool = False
    waits_for: Sequence[str] = ()
    waits_because: str = ""
    not_finite_series: Sequence[str] = ()

    @property
    def is_leaving(self) -> bool:
        """True when the attempt was asked to end and gives all its slots back."""
        return self.stop_requested or self.suspending

    @property
    def spare(self) -> int:
        """Slots that its newest attempt can do without."""
        if self.is_leaving:
            return self.current_ranks
        return max(0, self.current_ranks - self.spec.fewest_ranks) if self.spec.is_elastic else 0

    def start(self, ranks: int, now: datetime, gpus: Placement = (), *, is_backfill: bool = False) -> None:
        """Take the slots, and the GPUs of each rank, for the next attempt."""
        self._move(State.RUNNING)
        self.attempt += 1
        if self.resizing:
            changed = ranks != self.current_ranks
            self.reason = f"went on with {ranks} instead of {self.current_ranks} ranks" if changed else ""
        self.waits_because = ""
        self.current_ranks = ranks
        self.gpus = gpus
        self.resizing = False
        self.is_backfill = is_backfill
        self.application_id = self.driver_id = ""
        self.not_before = None
        self.attempt_started_at = now
        self.log_tail = ""
        self.ranks = ()
        self.started_at = self.started_at or now

    def wait(self, reason: str) -> bool:
        """Say what it waits for, empty for nothing; True when that is news."""
        before, self.waits_because = self.waits_because, reason
        return before != reason

    def resize(self, reason: str) -> None:
        """The attempt is to end for another number of ranks."""
        if self.state is not State.RUNNING:
            raise conflict(f"job {self.id} cannot be resized while it is {self.state}")
        self.resizing = True
        self.reason, self.waits_because = reason, ""

    def suspend(self, reason: str) -> None:
        """The attempt is to end and the job to wait again, so that others can start."""
        self.resize(reason)
        self.suspending = True

    def resume(self) -> None:
        """The attempt ended as was wanted, which is neither a failure nor a loss.

        After a resize the next one may start at once, after a suspension the job waits in its place.
        """
        self._move(State.SUBMITTED)
        self.not_before = None
        if self.suspending:
            self.resizing = self.suspending = False

    def finished_before(self, job_id: str) -> None:
        """A job that this one waits for is FINISHED."""
        self.waits_for = [other for other in self.waits_for if other != job_id]

    def give_up(self, reason: str, now: datetime) -> None:
        """It can never start."""
        self._end(State.ERROR, reason, now)

    def finish(self, now: datetime) -> None:
        """All ranks ended with code 0."""
        self._end(State.FINISHED, "", now)

    def kill(self, reason: str, now: datetime) -> None:
        """A stop was asked for and nothing of it runs any more."""
        self._end(State.KILLED, reason, now)

    def fail_program(self, reason: str, retry_at: datetime, now: datetime, *, final: bool = False) -> None:
        """The program failed: it waits for `retry_at` while it has restarts left, else or if `final` it is an error."""
        self.program_failures += 1
        if self.program_failures <= self.spec.max_restarts and not final:
            self._retry(f"{reason}; restart {self.program_failures} of {self.spec.max_restarts}", retry_at)
        elif self.spec.max_restarts and not final:
            self._end(State.ERROR, f"{reason}; no restart is left of {self.spec.max_restarts}", now)
        else:
            self._end(State.ERROR, reason, now)

    def lose(self, reason: str, retry_at: datetime, now: datetime) -> None:
        """The platform lost the attempt, which is not the program's fault; bounded all the same."""
        self.platform_losses += 1
        if self.platform_losses <= MAX_PLATFORM_LOSSES:
            self._retry(f"{reason}; started again", retry_at)
        else:
            self._end(State.ERROR, f"{reason}, {self.platform_losses} times", now)

    def retry_seconds(self) -> float:
        """How long to wait before the next attempt."""
        failures = self.program_failures + max(0, self.platform_losses - 1)
        return RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]

    def _retry(self, reason: str, at: datetime) -> None:
        self._move(State.SUBMITTED)
        self.resizing = self.suspending = False
        self.reason, self.waits_because = reason, ""
        self.not_before = at

    def _end(self, state: State, reason: str, now: datetime) -> None:
        self._move(state)
        self.resizing = self.suspending = False
        self.reason, self.waits_because = reason, ""
        self.ended_at = now

    def _move(self, state: State) -> None:
        if state not in _MOVES.get(self.state, frozenset()):
            raise conflict(f"job {self.id} cannot go from {self.state} to {state}")
        self.state = state
