"""One pass over the trials of a study that have not ended: start them, take over what their jobs say, settle them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
# Of a peer that is away, restarting or in trouble; everything else will be the same when it is asked again.
_PASSING = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.RESOURCE_EXHAUSTED, Code.ABORTED)
_ENDED_JOBS = ("FINISHED", "ERROR", "KILLED")
MAX_TAIL = 1000
# With how many finished trials one that runs is compared, and how often.
COMPARED_TRIALS = 200
COMPARE_SECONDS = 5.0


class FollowTrials:
    """Callable with a study and its open trials; True when one of them has ended. Every step may be repeated."""

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

    async def __call__(self, study: Study, plan: Plan, trials: Sequence[Trial]) -> bool:
        runner = self._runners[study.kind]
        fresh = [trial for trial in trials if trial.status is TrialStatus.NOTRUN]
        followed = [trial for trial in trials if trial.status is not TrialStatus.NOTRUN]
        facts = await self._jobs.get([trial.uid for trial in followed]) if followed else {}
        ended = [trial for trial in followed if trial.uid not in facts or facts[trial.uid].state in _ENDED_JOBS]
        results = await runner.results(plan, ended, have_ended=True) if ended else {}
        changed = []
        for trial in followed:
            if trial in ended and trial.uid in facts and trial.uid not in results:
                # It may have written more than has been read.
                continue
            if trial in ended:
                self._told_to_stop.discard(trial.uid)
                if _was_killed(trial, facts.get(trial.uid)):
                    trial.kills += 1
                    trial.run_again(self._make_uid())
                else:
                    _settle(trial, facts.get(trial.uid), results.get(trial.uid, Results()), self._now())
                changed.append(trial)
            elif _take_over(trial, facts[trial.uid]):
                changed.append(trial)
        # What has ended is written before anything else is tried.
        await self._save(study, plan, changed)
        await self._stop(study, plan, [trial for trial in followed if trial not in ended])
        for trial in fresh:
            await self._start(study, runner, plan, trial)
        # One that begins anew is to be started at once.
        return any(trial.status.is_final or trial.status is TrialStatus.NOTRUN for trial in trials)

    def forget(self, study_uid: str) -> None:
        """The study has ended."""
        self._compared_at.pop(study_uid, None)

    async def _save(self, study: Study, plan: Plan, trials: Sequence[Trial]) -> None:
        if trials:
            losses = {trial.number: losses_of(trial, plan)[0] for trial in trials if trial.objectives}
            await self._studies.save(study.uid, trials, losses)

    async def _start(self, study: Study, runner: Runner, plan: Plan, trial: Trial) -> None:
        if study.stop_requested or is_over_time(study, plan, self._now()):
            # A pass before this one may have started it and been killed.
            await runner.delete([trial.uid])
            trial.stop_reason = STOPPED_WITH_STUDY if study.stop_requested else OVER_TIME
            trial.end(TrialStatus.STOPPED, f"{trial.stop_reason} before it started", self._now())
        else:
            try:
                await runner.start(study, plan, trial, await self._parent(study, trial))
                trial.status = TrialStatus.SUBMITTED
            except ServiceError as error:
                if error.code in _PASSING:
                    raise
                trial.end(TrialStatus.FAILED, error.message, self._now())
        await self._save(study, plan, [trial])

    async def _parent(self, study: Study, trial: Trial) -> Trial | None:
        """The one that it goes on from: the rung below of Hyperband."""
        number = trial.notes.get("parent")
        found = await self._studies.numbered(study.uid, [int(number)]) if number else []
        return found[0] if found else None

    async def _stop(self, study: Study, plan: Plan, trials: Sequence[Trial]) -> None:
        if study.stop_requested:
            stopped = [(trial, STOPPED_WITH_STUDY) for trial in trials]
        elif is_over_time(study, plan, self._now()):
            stopped = [(trial, OVER_TIME) for trial in trials]
        else:
            stopped = [(trial, STOPPED_BY_RULE) for trial in await self._hopeless(study, plan, trials)]
        for trial, reason in stopped:
            if trial.uid in self._told_to_stop:
                continue
            if not trial.stop_reason:
                trial.stop_reason = reason
                # Before the stop: why it was has to be known when it has ended.
                await self._studies.save(study.uid, [trial], {})
            try:
                await self._jobs.stop(trial.uid)
            except ServiceError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
            self._told_to_stop.add(trial.uid)

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
