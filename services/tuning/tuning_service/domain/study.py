"""Studies and trials: what they are, and which move is legal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from servicekit.texts import storable

from tuning_service.domain.results import MetricRange, Results
from tuning_service.domain.space import Place, Value

MAX_MESSAGE = 4000
MAX_POINTS = 100
# Why a trial was stopped: what its study's stop cut off runs again after a restart, and of what had no hope the last
# value is as good as a result.
STOPPED_WITH_STUDY = "the study was stopped"
STOPPED_BY_RULE = "worse than the median of the others"


class Status(StrEnum):
    """SUBMITTED -> RUNNING -> FINISHED | FAILED | STOPPED; a restart leads from those three to RUNNING again."""

    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def is_final(self) -> bool:
        """True when nothing happens until somebody restarts it."""
        return self in (Status.FINISHED, Status.FAILED, Status.STOPPED)


class TrialStatus(StrEnum):
    """NOTRUN -> SUBMITTED -> RUNNING -> FINISHED | FAILED | STOPPED; the last three never change, but that a restart of
    the study runs again what its stop cut off."""

    NOTRUN = "NOTRUN"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def is_final(self) -> bool:
        """True when its job has ended."""
        return self in (TrialStatus.FINISHED, TrialStatus.FAILED, TrialStatus.STOPPED)


class Kind(StrEnum):
    """What a study's trials are."""

    HYPER_SEARCH = "hyper_search"
    MODEL_TUNING = "model_tuning"

    @property
    def word(self) -> str:
        """What people call such a study."""
        return "HPO task" if self is Kind.HYPER_SEARCH else "tuning"

    @property
    def experiment_parameters(self) -> str:
        """How its request calls the parameters of an experiment."""
        return "hyperParams" if self is Kind.HYPER_SEARCH else "fixedHyperParams"


@dataclass
class Counts:
    """Of a study's trials: how many there are, and how they ended."""

    trials: int = 0
    finished: int = 0
    failed: int = 0
    stopped: int = 0

    @property
    def ended(self) -> int:
        return self.finished + self.failed + self.stopped

    @property
    def open(self) -> int:
        return self.trials - self.ended


@dataclass
class Study:
    """A search. `request` is what was asked for, as it came; `known` is what earlier studies found, pairs of a place
    and its losses, the best first. Both are large, and empty where many studies are read at once: `algorithm`,
    `objective_metric`, `objective` and `most_trials` (None: nobody knows) say what people want to know of them.
    `model_uid` and `model_name` are of the model of a tuning, empty otherwise. `seed` decides every random choice.
    `run_seconds` is how long it ran before its last restart, `resumed_at` when that was. `best` is the number of the
    best trial, 0 while there is none; `improved_at` is how many trials had ended when it became that. `warnings` are
    what its user should know though nothing is wrong.
    """

    uid: str
    name: str
    kind: Kind
    owner: str
    request: Mapping[str, Any]
    group_id: str
    group_name: str
    seed: int
    created_at: datetime
    owner_is_administrator: bool = False
    model_uid: str = ""
    model_name: str = ""
    known: Sequence[Any] = ()
    algorithm: str = ""
    objective_metric: str = ""
    objective: str = ""
    most_trials: int | None = None
    warnings: Sequence[str] = ()
    upload: str = ""
    upload_name: str = ""
    status: Status = Status.SUBMITTED
    status_message: str = ""
    stop_requested: bool = False
    counts: Counts = field(default_factory=Counts)
    best: int = 0
    best_loss: float | None = None
    improved_at: int = 0
    is_exhausted: bool = False
    resumed_at: datetime | None = None
    run_seconds: float = 0.0
    ended_at: datetime | None = None

    def seconds(self, now: datetime) -> float:
        """How long it has been running, pauses left out."""
        if self.resumed_at is None:
            return self.run_seconds
        return self.run_seconds + max(0.0, ((self.ended_at or now) - self.resumed_at).total_seconds())

    def end(self, status: Status, message: str, now: datetime) -> None:
        """It has a result, or none."""
        self.status, self.status_message, self.ended_at = status, storable(message[:MAX_MESSAGE]), now

    def resume(self, now: datetime) -> None:
        """It goes on."""
        self.run_seconds = self.seconds(now)
        self.resumed_at, self.ended_at = now, None
        self.status, self.status_message, self.stop_requested = Status.RUNNING, "", False
        self.is_exhausted = False


@dataclass
class Trial:
    """One run with one set of parameters. `uid` is the id of its job. `place` and `notes` are the algorithm's; `values`
    are what the program gets. `objectives` are the newest values of the metrics that are optimised, `curve` is step and
    value of the first of them, thinned out. `stop_reason` is why it was told to stop, or was STOPPED. `earlier_uids`
    are of jobs that were cut off."""

    study_uid: str
    number: int
    uid: str
    values: Mapping[str, Value]
    place: Place | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    status: TrialStatus = TrialStatus.NOTRUN
    message: str = ""
    objectives: tuple[float, ...] = ()
    metrics: Mapping[str, MetricRange] = field(default_factory=dict)
    curve: Sequence[tuple[float, float]] = ()
    attempts: int = 1
    kills: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    driver_id: str = ""
    stop_reason: str = ""
    earlier_uids: Sequence[str] = ()

    def take(self, results: Results) -> None:
        """Keep what its program wrote."""
        self.objectives = results.values
        self.metrics = dict(results.metrics or {})
        self.curve = thinned(results.curve)

    def end(self, status: TrialStatus, message: str, ended_at: datetime) -> None:
        """Its job has ended, or will never begin. What ended by itself was not stopped, whatever it had been told."""
        self.status, self.message, self.ended_at = status, storable(message[:MAX_MESSAGE]), ended_at
        if status is not TrialStatus.STOPPED:
            self.stop_reason = ""

    def run_again(self, uid: str) -> None:
        """What was cut off, by a stop of the study or a kill, begins anew, as another job."""
        self.earlier_uids = (*self.earlier_uids, self.uid)
        self.uid, self.attempts = uid, self.attempts + 1
        self.status, self.message, self.stop_reason = TrialStatus.NOTRUN, "", ""
        self.objectives, self.metrics, self.curve = (), {}, ()
        self.started_at = self.ended_at = None
        self.driver_id = ""


def thinned(curve: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most MAX_POINTS of a curve, the first and the last among them."""
    if len(curve) <= MAX_POINTS:
        return tuple(curve)
    return tuple(curve[round(index * (len(curve) - 1) / (MAX_POINTS - 1))] for index in range(MAX_POINTS))
