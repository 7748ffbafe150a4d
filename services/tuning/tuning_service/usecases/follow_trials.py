"""One pass over the trials of a study that have not ended: start them, take over what their jobs say, settle them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from servicekit.errors import Code, ServiceError
from servicekit.jobs import JobFacts

from tuning_service.domain.plan import Plan
from tuning_service.domain.results import Results
from tuning_service.domain.stopping import is_hopeless, is_over_time
from tuning_service.domain.study import STOPPED_BY_RULE, STOPPED_WITH_STUDY, Kind, Study, Trial, TrialStatus
from tuning_service.usecases.ports import Jobs, Runner, Studies
from tuning_service.usecases.trials import losses_of

# How often a trial begins anew that was killed: by whoever needed its memory, say, and not by what its program does.
KILLED_RESTARTS = 2
OVER_TIME = "maxRunTime was over"
# What peers say who are away or stuck, and who are in trouble; every other refusal will be the same the next time.
AWAY = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
_PASSING = (*AWAY, Code.INTERNAL, Code.RESOURCE_EXHAUSTED)
# How many trials of one study are started, or stopped, at a time: a start may have to unpack an upload.
AT_ONCE = 4
_ENDED_JOBS = ("FINISHED", "ERROR", "KILLED")
MAX_TAIL = 1000
# With how many finished trials one that runs is compared, and how often.
COMPARED_TRIALS = 200
COMPARE_SECONDS = 5.0


@dataclass(frozen=True)
class Followed:
    """Whether a trial was started, has ended or is to begin anew, and what was in the way first, if anything was."""

    has_changed: bool = False
    trouble: ServiceError | None = None


class FollowTrials:
    """Callable with a study and its open trials. Every step may be repeated.

    What is in the way of one step or trial is not in the way of the others, and what has to be stopped comes first: a
    limit holds whatever the peers say to the rest.
    """

    def __init__(
        self,
        studies: Studies,
        runners: Mapping[Kind, Runner],
        jobs: Jobs,
        now: Callable[[], datetime],
        make_uid: Callable[[], str] = lambda: uuid4().hex,
    ) -> None:
        self._studies, self._runners, self._jobs, self._now = studies, runners, jobs, now
        self._make_uid = make_uid
        self._told_to_stop: set[str] = set()
        self._compared_at: dict[str, datetime] = {}

    async def __call__(self, study: Study, plan: Plan, trials: Sequence[Trial]) -> Followed:
        before = [(trial, trial.uid, trial.status) for trial in trials]
        fresh = [trial for trial in trials if trial.status is TrialStatus.NOTRUN]
        followed = [trial for trial in trials if trial.status is not TrialStatus.NOTRUN]
        facts = await self._jobs.get([trial.uid for trial in followed]) if followed else {}
        going_on = [trial for trial in followed if trial.uid in facts and facts[trial.uid].state not in _ENDED_JOBS]
        ended = [trial for trial in followed if trial.uid not in facts or facts[trial.uid].state in _ENDED_JOBS]
        troubles = _Troubles()
        reason = self._reason_to_stop(study, plan)
        if reason:
            with troubles.kept():
                await self._stop(study, going_on, reason, troubles)
        with troubles.kept():
            await self._save(study, plan, [trial for trial in going_on if _take_over(trial, facts[trial.uid])])
        with troubles.kept():
            await self._settle_ended(study, plan, ended, facts)
        if not reason:
            with troubles.kept():
                hopeless = await self._hopeless(study, plan, going_on)
                await self._stop(study, hopeless, STOPPED_BY_RULE, troubles)
        with troubles.kept():
            await (self._cancel(study, plan, fresh, reason) if reason else self._start(study, plan, fresh, troubles))
        return Followed(any(_has_moved(*one) for one in before), troubles.first)

    def forget(self, study_uid: str) -> None:
        """The study has ended."""
        self._compared_at.pop(study_uid, None)

    async def _save(self, study: Study, plan: Plan, trials: Sequence[Trial]) -> None:
        if trials:
            losses = {trial.number: losses_of(trial, plan)[0] for trial in trials if trial.objectives}
            await self._studies.save(study.uid, trials, losses)

    async def _settle_ended(
        self, study: Study, plan: Plan, ended: Sequence[Trial], facts: Mapping[str, JobFacts]
    ) -> None:
        results = await self._runners[study.kind].results(plan, ended, have_ended=True) if ended else {}
        settled = []
        for trial in ended:
            job = facts.get(trial.uid)
            if job is not None and trial.uid not in results:
                # It may have written more than has been read.
                continue
            self._told_to_stop.discard(trial.uid)
            if _was_killed(trial, job):
                trial.kills += 1
                trial.run_again(self._make_uid())
            else:
                _settle(trial, job, results.get(trial.uid, Results()), self._now())
            settled.append(trial)
        await self._save(study, plan, settled)

    async def _cancel(self, study: Study, plan: Plan, fresh: Sequence[Trial], reason: str) -> None:
        if fresh:
            # A pass before this one may have started them and been killed.
            await self._runners[study.kind].delete([trial.uid for trial in fresh])
        for trial in fresh:
            trial.stop_reason = reason
            trial.end(TrialStatus.STOPPED, f"{reason} before it started", self._now())
        await self._save(study, plan, fresh)

    async def _start(self, study: Study, plan: Plan, fresh: Sequence[Trial], troubles: _Troubles) -> None:
        async def start(trial: Trial) -> None:
            try:
                await self._runners[study.kind].start(study, plan, trial, await self._parent(study, trial))
                trial.status = TrialStatus.SUBMITTED
            except ServiceError as error:
                if error.code in _PASSING or error.reason == "IN_USE":
                    raise
                trial.end(TrialStatus.FAILED, error.message, self._now())
            await self._save(study, plan, [trial])

        await _each(fresh, start, troubles)

    async def _parent(self, study: Study, trial: Trial) -> Trial | None:
        """The one that it goes on from: the rung below of Hyperband."""
        number = trial.notes.get("parent")
        found = await self._studies.numbered(study.uid, [int(number)]) if number else []
        return found[0] if found else None

    def _reason_to_stop(self, study: Study, plan: Plan) -> str:
        """Why all trials have to end; empty when they need not."""
        if study.stop_requested:
            return STOPPED_WITH_STUDY
        return OVER_TIME if is_over_time(study, plan, self._now()) else ""

    async def _stop(self, study: Study, trials: Sequence[Trial], reason: str, troubles: _Troubles) -> None:
        async def stop(trial: Trial) -> None:
            try:
                await self._jobs.stop(trial.uid)
            except ServiceError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
            self._told_to_stop.add(trial.uid)

        untold = [trial for trial in trials if trial.uid not in self._told_to_stop]
        if unmarked := [trial for trial in untold if not trial.stop_reason]:
            for trial in unmarked:
                trial.stop_reason = reason
            # Before the stop: why it was has to be known when it has ended.
            await self._studies.save(study.uid, unmarked, {})
        await _each(untold, stop, troubles)

    async def _hopeless(self, study: Study, plan: Plan, trials: Sequence[Trial]) -> list[Trial]:
        rule, now = plan.median_rule, self._now()
        running = [trial for trial in trials if trial.status is TrialStatus.RUNNING]
        compared_at = self._compared_at.get(study.uid)
        if rule is None or not running or study.counts.finished < rule.min_trials:
            return []
        if compared_at is not None and (now - compared_at).total_seconds() < COMPARE_SECONDS:
            return []
        self._compared_at[study.uid] = now
        others = await self._studies.finished_curves(study.uid, COMPARED_TRIALS)
        results = await self._runners[study.kind].results(plan, running, have_ended=False)
        return [
            trial
            for trial in running
            if is_hopeless(rule, plan.objectives[0], results.get(trial.uid, Results()).curve, others)
        ]


class _Troubles:
    """What was in the way, of which the first is told."""

    def __init__(self) -> None:
        self.first: ServiceError | None = None

    def add(self, error: ServiceError) -> None:
        self.first = self.first or error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around what others need not wait for."""
        try:
            yield
        except ServiceError as error:
            self.add(error)


async def _each(trials: Sequence[Trial], act: Callable[[Trial], Awaitable[None]], troubles: _Troubles) -> None:
    """A few at once, each for itself. Nobody waits for a peer that is away once for each of them: what is left then is
    for the next pass."""
    left = iter(trials)

    async def work() -> None:
        for trial in left:
            try:
                await act(trial)
            except ServiceError as error:
                troubles.add(error)
                if error.code in AWAY:
                    return

    workers = [work() for _ in trials[:AT_ONCE]]
    for error in await asyncio.gather(*workers, return_exceptions=True):
        if error is not None:
            raise error


def _has_moved(trial: Trial, uid: str, status: TrialStatus) -> bool:
    """Whether it was started, has ended or is to begin anew."""
    return trial.uid != uid or (trial.status is not status and (status is TrialStatus.NOTRUN or trial.status.is_final))


def _take_over(trial: Trial, job: JobFacts) -> bool:
    """What a job says that goes on; True when anything changed."""
    status = TrialStatus.RUNNING if job.state == "RUNNING" else TrialStatus.SUBMITTED
    new = (status, job.reason, job.driver_id or trial.driver_id, job.started_at)
    if new == (trial.status, trial.message, trial.driver_id, trial.started_at):
        return False
    trial.status, trial.message, trial.driver_id, trial.started_at = new
    return True


def _was_killed(trial: Trial, job: JobFacts | None) -> bool:
    """Whether it is worth beginning anew, because nobody asked for its end."""
    return job is not None and job.was_killed and not trial.stop_reason and trial.kills < KILLED_RESTARTS


def _settle(trial: Trial, job: JobFacts | None, results: Results, now: datetime) -> None:
    if job is None:
        trial.end(TrialStatus.FAILED, "its task was deleted before it ended", now)
        return
    ended_at = job.ended_at or now
    trial.driver_id, trial.started_at = job.driver_id or trial.driver_id, job.started_at
    trial.take(results)
    if job.state == "FINISHED" and results.values:
        trial.end(TrialStatus.FINISHED, job.warning, ended_at)
    elif job.state == "FINISHED":
        trial.end(TrialStatus.FAILED, results.complaint, ended_at)
    elif job.state == "KILLED":
        trial.end(TrialStatus.STOPPED, trial.stop_reason or job.reason or "stopped", ended_at)
    else:
        # Whatever it wrote before it failed is no result.
        trial.objectives = ()
        text = "\n".join(part for part in (job.refusal or job.reason, job.log_tail[-MAX_TAIL:].strip()) if part)
        trial.end(TrialStatus.FAILED, text, ended_at)
