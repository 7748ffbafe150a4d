"""Make studies true: ask what to try, have the trials followed, end what is over. The only place that does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from uuid import uuid4

from servicekit.errors import ServiceError
from servicekit.reconcile import Next

from tuning_service.domain.evaluation import Answer
from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import Plan
from tuning_service.domain.stopping import outcome, reason_to_end
from tuning_service.domain.study import Kind, Status, Study, Trial, TrialStatus
from tuning_service.usecases.follow_trials import FollowTrials
from tuning_service.usecases.ports import Algorithms, Jobs, Studies, SuggestionError, Suggestions, Wake
from tuning_service.usecases.start_hyper_search import read_request
from tuning_service.usecases.trials import TrialHistory, given_trials, made_trials, problem_of

log = logging.getLogger(__name__)

# Most answers come within milliseconds: a pass waits for those.
PROMPT_SECONDS = 0.05
# How long the end of a trial is waited for in one call.
AWAIT_SECONDS = 20.0
_SHOWN_FAILURES = 50
# By kind: how a request calls the parameters of an experiment.
EXPERIMENT_PARAMETERS = {Kind.HYPER_SEARCH: "hyperParams", Kind.MODEL_TUNING: "fixedHyperParams"}


class RunStudies:
    """One pass over the studies that something is left to be done for; safe to be killed anywhere and to repeat.

    What takes long is done beside the passes, asks and waiting for the ends of trials, and wakes the loop.
    """

    def __init__(
        self,
        studies: Studies,
        algorithms: Algorithms,
        suggestions: Suggestions,
        follow: FollowTrials,
        jobs: Jobs,
        now: Callable[[], datetime],
        wake: Wake,
    ) -> None:
        self._studies, self._algorithms, self._suggestions = studies, algorithms, suggestions
        self._follow, self._jobs, self._now, self._wake = follow, jobs, now, wake
        self._plans: dict[str, tuple[Mapping[str, object], Plan]] = {}
        # By study: after how many trials was asked, and for what.
        self._asks: dict[str, tuple[int, asyncio.Task[Answer]]] = {}
        # Studies whose algorithms wait for another of their trials to end: how many had when they were asked.
        self._waiting: dict[str, tuple[int, int]] = {}
        # By study and its last beginning: a restart may find the algorithm mended.
        self._failures: dict[tuple[str, datetime | None], str] = {}
        self._open: set[str] = set()
        self._watched: frozenset[str] = frozenset()
        self._watch: asyncio.Task[None] | None = None

    async def step(self) -> Next:
        studies = await self._studies.tended()
        for uid in set(self._plans) - {study.uid for study in studies}:
            await self._forget(uid)
        self._open = set()
        outlooks = [await self._guarded(study) for study in studies]
        self._await_ends()
        if Next.AT_ONCE in outlooks:
            return Next.AT_ONCE
        return Next.SOON if outlooks else Next.LATER

    async def close(self) -> None:
        """End what goes on beside the passes."""
        tasks = [*(task for _, task in self._asks.values()), *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(self, study: Study) -> Next:
        """What is in the way of one study is not in the way of the others."""
        try:
            return await self._advance(study)
        except ServiceError as error:
            # A peer is away, restarting or in trouble.
            await self._say(study, f"waiting: {error.message}")
        except Exception as error:
            log.exception("study %s: step failed, trying again", study.name)
            await self._say(study, f"in trouble, trying again: {error or type(error).__name__}")
        return Next.SOON

    async def _say(self, study: Study, message: str) -> None:
        if study.status_message == message:
            return
        log.info("study %s: %s", study.name, message)
        try:
            await self._studies.describe(study.uid, message)
        except Exception:
            log.exception("cannot describe study %s", study.name)

    async def _advance(self, study: Study) -> Next:
        if study.status is Status.SUBMITTED:
            await self._studies.begin(study.uid, self._now())
            return Next.AT_ONCE
        plan = await self._plan(study)
        open_trials = await self._studies.open_trials(study.uid)
        has_fresh = any(trial.status is TrialStatus.NOTRUN for trial in open_trials)
        # What was started, or ended, makes everything else different.
        if open_trials and (await self._follow(study, plan, open_trials) or has_fresh):
            return Next.AT_ONCE
        self._open |= {trial.uid for trial in open_trials}
        if study.status.is_final:
            if not open_trials:
                await self._studies.settle(study.uid)
            return Next.SOON
        if reason := self._reason_to_end(study, plan):
            return await self._wind_up(study, open_trials, reason)
        room = plan.parallel - len(open_trials)
        if plan.max_trials is not None:
            room = min(room, plan.max_trials - study.counts.trials)
        return await self._fill(study, plan, room) if room > 0 else Next.SOON

    async def _plan(self, study: Study) -> Plan:
        known = self._plans.get(study.uid)
        if known is None or known[0] != study.request:
            names = EXPERIMENT_PARAMETERS[study.kind]
            plan = await read_request(Fields("", study.request), self._algorithms, experiment_parameters=names)
            known = self._plans[study.uid] = (study.request, plan)
        return known[1]

    # -- the end

    def _reason_to_end(self, study: Study, plan: Plan) -> str:
        if study.stop_requested:
            return "stopped"
        return self._failures.get((study.uid, study.resumed_at)) or reason_to_end(study, plan, self._now())

    async def _wind_up(self, study: Study, open_trials: Sequence[Trial], reason: str) -> Next:
        """What runs is let end, or was told to; then the study has."""
        self._cancel_ask(study.uid)
        if open_trials:
            running = f"{len(open_trials)} trial{'s' if len(open_trials) > 1 else ''}"
            await self._say(study, f"ending when {running} more ended: {reason}")
            return Next.SOON
        if (study.uid, study.resumed_at) in self._failures and not study.stop_requested:
            study.end(Status.FAILED, reason, self._now())
        else:
            if not study.counts.finished and (newest := await self._newest_failure(study)):
                reason = f"{reason}; trial {newest.number}: {newest.message}"
            study.end(*outcome(study, reason), self._now())
        await self._studies.end(study)
        return Next.AT_ONCE

    async def _newest_failure(self, study: Study) -> Trial | None:
        count = study.counts.trials
        trials = await self._studies.numbered(study.uid, range(max(1, count - _SHOWN_FAILURES), count + 1))
        return next((trial for trial in reversed(trials) if trial.status is TrialStatus.FAILED), None)

    # -- what is to be tried

    async def _fill(self, study: Study, plan: Plan, room: int) -> Next:
        """Ask, and write down what was answered."""
        counts = study.counts
        if given := given_trials(study, plan, room, _made_uid):
            await self._studies.append(study.uid, counts.trials, given, is_exhausted=False)
            return Next.AT_ONCE
        if self._waiting.get(study.uid) == (counts.trials, counts.ended):
            return Next.SOON
        if study.uid not in self._asks or self._asks[study.uid][0] != counts.trials:
            self._cancel_ask(study.uid)
            task = asyncio.ensure_future(self._ask(study, plan, room))
            task.add_done_callback(lambda _: self._wake())
            self._asks[study.uid] = (counts.trials, task)
            await asyncio.wait({task}, timeout=PROMPT_SECONDS)
        task = self._asks[study.uid][1]
        if not task.done():
            return Next.SOON
        del self._asks[study.uid]
        try:
            answer = task.result()
        except SuggestionError as error:
            self._failures[study.uid, study.resumed_at] = str(error)
            return Next.AT_ONCE
        trials = made_trials(study, plan, answer, _made_uid)
        if not trials and not answer.is_exhausted:
            self._waiting[study.uid] = (counts.trials, counts.ended)
            return Next.SOON
        await self._studies.append(study.uid, counts.trials, trials, is_exhausted=answer.is_exhausted)
        await self._say(study, "")
        return Next.AT_ONCE

    async def _ask(self, study: Study, plan: Plan, room: int) -> Answer:
        history = TrialHistory(self._studies, study, plan)
        return await self._suggestions.ask(study, plan.algorithm, problem_of(study, plan), history, room)

    def _cancel_ask(self, uid: str) -> None:
        if ask := self._asks.pop(uid, None):
            ask[1].cancel()

    # -- beside the passes

    def _await_ends(self) -> None:
        """Have the ends of what runs now waited for; a change of what that is replaces the wait."""
        wanted = frozenset(self._open)
        if wanted == self._watched and self._watch is not None and not self._watch.done():
            return
        if self._watch is not None:
            self._watch.cancel()
        self._watched = wanted
        self._watch = asyncio.ensure_future(self._await(sorted(wanted))) if wanted else None

    async def _await(self, job_ids: Sequence[str]) -> None:
        try:
            if await self._jobs.await_ends(job_ids, AWAIT_SECONDS):
                self._wake()
        except ServiceError:
            # The passes look by themselves.
            await asyncio.sleep(1.0)

    async def _forget(self, uid: str) -> None:
        self._plans.pop(uid, None)
        self._failures = {key: text for key, text in self._failures.items() if key[0] != uid}
        self._waiting.pop(uid, None)
        self._cancel_ask(uid)
        self._follow.forget(uid)
        await self._suggestions.forget(uid)


def _made_uid() -> str:
    return uuid4().hex
