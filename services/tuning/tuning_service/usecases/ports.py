"""What the use cases need from outside: storage, disk, processes that think, and the other services."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from servicekit.jobs import JobFacts

from tuning_service.domain.evaluation import Answer, Evaluation, Problem
from tuning_service.domain.plan import AlgorithmFacts, Plan
from tuning_service.domain.results import Results
from tuning_service.domain.study import Kind, Study, Trial, TrialStatus


@dataclass(frozen=True)
class TrialPage:
    """Which trials of a study: of these `statuses` (all when empty), by number or, `by_loss`, the best first."""

    start: int = 0
    length: int = 1000
    statuses: Sequence[TrialStatus] = ()
    by_loss: bool = False
    newest_first: bool = False
    # Fewer than `length` when those take more than about so much.
    most_bytes: int | None = None


class Studies(Protocol):
    """The tables of studies and trials. Each call is one transaction; deleted studies are found by `deleted` only."""

    async def add(self, study: Study) -> None:
        """Store a new study; 409 when its name is taken."""

    async def find(self, kind: Kind, model_uid: str, name: str) -> Study | None:
        """The study of that name."""

    async def get(self, uid: str) -> Study | None:
        """The study, as long as it is not deleted."""

    async def of_kind(self, kind: Kind, *, model_uid: str = "", owner: str | None = None) -> Sequence[Study]:
        """Those of `owner` (None: of everybody), oldest first; without what earlier studies found, and large requests
        are left out."""

    async def models(self) -> Sequence[tuple[str, str]]:
        """Uid and name of every model that has tunings."""

    async def tended(self, uid: str = "") -> Sequence[Study]:
        """Those of which something has to be made true yet, or that one of them, without requests and what earlier
        studies found."""

    async def page(self, uid: str, page: TrialPage, *, is_slim: bool = False) -> Sequence[Trial]:
        """Some trials of a study; `is_slim` ones have no places, curves and earlier runs."""

    async def shown(self, uids: Sequence[str], length: int) -> Mapping[str, Sequence[Trial]]:
        """Of each of these studies the newest `length` trials and the best one, slim, by number."""

    async def first_with_room(self, uid: str, numbers: Sequence[int], most_bytes: int) -> Sequence[int]:
        """The first of these trials, as many as take about so much when they are shown, one at least."""

    async def numbered(self, uid: str, numbers: Sequence[int]) -> Sequence[Trial]:
        """The trials with these numbers."""

    async def open_trials(self, uid: str) -> Sequence[Trial]:
        """Those that have not ended, by number."""

    async def changed(
        self, uid: str, since: int, length: int, *, with_values: bool = True
    ) -> tuple[Sequence[Trial], int, bool]:
        """Trials that an algorithm has to hear of, without metrics and curves, in the order of their changes: those
        that came or ended after the change `since`, about `length` of them at most, fewer where values are large; the
        change up to which they are complete; and whether that is the newest one."""

    async def objectives_of(self, uid: str) -> Sequence[tuple[int, Sequence[float]]]:
        """Numbers and objectives of all finished trials."""

    async def finished_curves(self, uid: str, length: int) -> Sequence[Sequence[tuple[float, float]]]:
        """The curves of the newest finished trials."""

    async def append(self, uid: str, expected: int, trials: Sequence[Trial], *, is_exhausted: bool) -> bool:
        """Add trials to a study that has `expected` of them and goes on; False when it has others or does not."""

    async def save(self, uid: str, trials: Sequence[Trial], losses: Mapping[int, float]) -> None:
        """Write how trials stand, count those that ended, keep the best; `losses` of those that have one. What has
        ended already stays as it is."""

    async def begin(self, uid: str, now: datetime) -> None:
        """It runs."""

    async def describe(self, uid: str, message: str) -> None:
        """Say what a study that runs is doing."""

    async def end(self, study: Study) -> bool:
        """Write the end of a study that runs; False when it was stopped or restarted in this moment."""

    async def settle(self, uid: str) -> None:
        """Nothing is left to be done for a study that has ended; it stays in sight."""

    async def request_stop(self, uid: str, now: datetime, *, at_once: bool) -> bool:
        """Order its end; `at_once` it counts as STOPPED already. False when it has ended before."""

    async def resume(self, study: Study, make_uid: Callable[[], str]) -> int:
        """Let a study that has ended go on, with its request as given; trials that its stop cut off begin again. How
        many those are. 409 when it runs."""

    async def cut_off(self, uid: str) -> int:
        """How many trials begin again when the study is resumed."""

    async def delete(self, uid: str, now: datetime) -> None:
        """Take a study that has ended out of sight; 409 while it runs."""

    async def delete_all(self, kind: Kind, owner: str, now: datetime) -> None:
        """The same with all that the user has of a kind; 409, and none is deleted, when one runs."""

    async def deleted(self) -> Sequence[tuple[str, Kind]]:
        """Uids and kinds of studies whose trials and files have to be removed."""

    async def known(self, uids: Sequence[str]) -> set[str]:
        """Which of them there are, deleted or not."""

    async def runs(self, uid: str, length: int) -> Mapping[int, Sequence[str]]:
        """Of the first `length` trials of a study, deleted or not, the uids of all their jobs, by number."""

    async def remove_trials(self, uid: str, numbers: Sequence[int]) -> None:
        """Remove rows of a deleted study."""

    async def remove(self, uid: str) -> None:
        """Remove the row of a deleted study."""


class Suggestions(Protocol):
    """The processes that think out what to try next."""

    async def ask(self, study: Study, algorithm: str, problem: Problem, history: History, count: int) -> Answer:
        """What to try next. `SuggestionError` when the study cannot go on, OSError when it is worth asking again."""

    def doing(self, study_uid: str) -> str:
        """What an ask of the study that takes long is at, for people; empty when there is nothing to say."""

    async def importance(self, study: Study, problem: Problem, history: History) -> Mapping[str, float]:
        """What part each parameter has in what all of them explain of the losses, 0 to 1; empty when too few trials
        have ended. `SuggestionError` when that cannot be said, 503 when it takes too long."""

    async def forget(self, study_uid: str) -> None:
        """It has ended: what is kept of it, and runs for it, may go."""


class Fronts(Protocol):
    """Where the trials are found that are worth choosing from when there are many of them and many objectives."""

    async def front(self, losses: Sequence[tuple[int, Sequence[float]]], most: int) -> Sequence[int]:
        """The numbers of the first `most`, by their losses, that no other one beats, that is, is at least as good as in
        everything and better than in something. 503 when that takes too long."""


class History(Protocol):
    """The trials of a study as its algorithm may see them."""

    async def since(self, change: int) -> tuple[Sequence[Evaluation], int, bool]:
        """A page of what is new after the change (0 is everything), the change up to which it is complete, and whether
        that is the newest one. A trial that changes meanwhile comes again."""


class SuggestionError(Exception):
    """An algorithm that cannot go on; its text says why, for people."""


class Runner(Protocol):
    """What runs the trials of one kind of study."""

    async def start(self, study: Study, plan: Plan, trial: Trial, parent: Trial | None) -> None:
        """Run a trial, which may go on from where its `parent` ended; the same trial again is the same run. 400 when it
        can never run."""

    async def results(self, plan: Plan, trials: Sequence[Trial], *, have_ended: bool) -> Mapping[str, Results]:
        """What trials have written so far, by uid. Of those that `have_ended` only what is complete: without those that
        may have written more than is known yet, or that there was no time for."""

    async def delete(self, uids: Sequence[str]) -> None:
        """End runs that go on, and remove all of them with their files."""


class Jobs(Protocol):
    """Jobs of the scheduling service."""

    async def get(self, job_ids: Sequence[str]) -> Mapping[str, JobFacts]:
        """The jobs that are known."""

    async def stop(self, job_id: str) -> None:
        """Ask for the end of a job; 404 when it was never submitted."""

    async def await_ends(self, job_ids: Sequence[str], seconds: float) -> set[str]:
        """Those of the jobs that have ended, as soon as one has; none after `seconds`."""


@dataclass(frozen=True)
class InstalledAlgorithm:
    """An algorithm that a user installed; its files are where `PluginFolders` keeps those of `uid`."""

    name: str
    uid: str
    creator: str
    created_at: datetime
    path: str = ""
    conda_home: str = ""
    conda_environment: str = ""
    remote_execution: bool = False
    log_level: str = "INFO"


class Algorithms(Protocol):
    """Built-in algorithms and installed ones."""

    def built_in(self) -> Sequence[str]:
        """The names of the former."""

    async def find(self, name: str) -> AlgorithmFacts | None:
        """The algorithm of that name, in any case if it is built in."""

    async def installed(self) -> Sequence[InstalledAlgorithm]:
        """All that users installed, by name."""

    async def add(self, algorithm: InstalledAlgorithm) -> None:
        """Store one; 409 when the name is taken."""

    async def remove(self, name: str) -> InstalledAlgorithm | None:
        """Remove it; None when there is none."""


class PluginFolders(Protocol):
    """Copies of installed algorithms on disk. Blocking; OSError for a disk in trouble."""

    def install(self, algorithm: InstalledAlgorithm, upload: Path | None) -> None:
        """Keep a copy of the algorithm's path, or of an upload; 400 for one that cannot be used."""

    def remove(self, uid: str) -> None:
        """Remove the copy; nothing when it is gone."""

    def orphans(self) -> Sequence[str]:
        """Names of old folders, which may be nobody's."""

    def remove_orphan(self, name: str) -> None:
        """Remove what is left of an algorithm that is not installed."""


class StudyFolders(Protocol):
    """The folders of studies below `$DLMESH_HOME/tuning`. Blocking; OSError for a disk in trouble."""

    def publish(self, uid: str, upload: Path) -> str:
        """Keep the file of an upload; where it lies, durable when this returns."""

    def remove(self, uid: str) -> None:
        """Remove the folder; nothing when it is gone."""

    def orphans(self) -> Sequence[str]:
        """Names of old folders, which may be nobody's."""


Wake = Callable[[], None]
