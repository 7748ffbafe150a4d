"""Make studies true: ask what to try, have the trials followed, end what is over. The only place that does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import uuid4

from servicekit.errors import ServiceError, not_found
from servicekit.reconcile import Next

from tuning_service.domain.evaluation import Answer
from tuning_service.domain.plan import Plan
from tuning_service.domain.stopping import outcome, reason_to_end
from tuning_service.domain.study import Status, Study, Trial, TrialStatus
from tuning_service.usecases.follow_trials import Followed, FollowTrials
from tuning_service.usecases.passes import Passes
from tuning_service.usecases.ports import Algorithms, Jobs, Studies, SuggestionError, Suggestions
from tuning_service.usecases.stored_plans import stored_plan
from tuning_service.usecases.trial_ends import TrialEnds
from tuning_service.usecases.trials import TrialHistory, given_trials, made_trials, problem_of

log = logging.getLogger(__name__)

# Most answers come within milliseconds: a pass waits for those.
PROMPT_SECONDS = 0.05
_SHOWN_FAILURES = 50


class RunStudies:
    """Has a pass made over each study that something is left to be done for; one is safe to be killed anywhere and to
    repeat.

    Passes over different studies go on side by side, and `step` waits for none of them. What takes long is done beside
    the passes, asks and waiting for the ends of trials, and is followed by one over the study that it is of.
    """

    def __init__(
        self,
        studies: Studies,
        algorithms: Algorithms,
        suggestions: Suggestions,
        follow: FollowTrials,
        jobs: Jobs,
        now: Callable[[], datetime],
    ) -> None:
        self._studies, self._algorithms, self._suggestions = studies, algorithms, suggestions
        self._follow, self._now = follow, now
        self.passes = Passes(self._look)
        self._ends = TrialEnds(jobs)
        # What is read of a study once: it has a plan, and what that was read from.
        self._plans: dict[str, tuple[Study, Plan]] = {}
        # By study: how many trials there were, and had ended, when its algorithm was asked.
        self._asks: dict[str, tuple[tuple[int, int], asyncio.Task[Answer]]] = {}
        # Studies whose algorithms wait for another of their trials to end: how many had when they were asked.
        self._waiting: dict[str, tuple[int, int]] = {}
        # By study and its last beginning: a restart may find the algorithm mended.
        self._failures: dict[tuple[str, datetime | None], str] = {}
        # By study that is tended no more: how its algorithm is let go, whose process may take its time to end.
        self._partings: dict[str, asyncio.Task[None]] = {}

    async def step(self) -> Next:
        studies = await self._studies.tended()
        for uid in set(self._plans) - {study.uid for study in studies} - set(self.passes.tasks):
            self._forget(uid)
        for study in studies:
            self.passes.begin(study.uid, study.kind)
        return Next.SOON if studies else Next.LATER

    async def close(self) -> None:
        """End what goes on beside the steps."""
        await self.passes.close()
        await self._ends.close()
        tasks = [*(task for _, task in self._asks.values()), *self._partings.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, uid: str) -> Next:
        found = await self._studies.tended(uid)
        return await self._guarded(found[0]) if found else Next.LATER

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
            study.status_message = message
        except Exception:
            log.exception("cannot describe study %s", study.name)

    async def _advance(self, study: Study) -> Next:
        if study.status is Status.SUBMITTED:
            await self._studies.begin(study.uid, self._now())
            return Next.AT_ONCE
        plan = await self._plan(study)
        open_trials = await self._studies.open_trials(study.uid)
        followed = await self._follow(study, plan, open_trials) if open_trials else Followed()
        # It makes everything else different.
        if followed.has_changed:
            return Next.AT_ONCE
        self._watch(study, open_trials)
        if study.status.is_final:
            if not open_trials:
                await self._studies.settle(study.uid)
            return Next.SOON
        trouble = f"waiting: {followed.trouble.message}" if followed.trouble else ""
        if reason := self._reason_to_end(study, plan):
            return await self._wind_up(study, open_trials, reason, trouble)
        room = plan.parallel - len(open_trials)
        if plan.max_trials is not None:
            room = min(room, plan.max_trials - study.counts.trials)
        outlook = await self._fill(study, plan, room) if room > 0 else Next.SOON
        doing = self._suggestions.doing(study.uid) if study.uid in self._asks else ""
        if trouble or doing or (outlook is Next.SOON and study.uid not in self._asks):
            await self._say(study, trouble or doing)
        return outlook

    async def _plan(self, study: Study) -> Plan:
        """The study's plan; the study gets its request and what earlier ones found, which only a restart changes."""
        known = self._plans.get(study.uid)
        if known is None or known[0].resumed_at != study.resumed_at:
            whole = await self._studies.get(study.uid)
            if whole is None:
                raise not_found("study", study.name)
            known = self._plans[study.uid] = (whole, await stored_plan(whole, self._algorithms))
        study.request, study.known = known[0].request, known[0].known
        return known[1]

    # -- the end

    def _reason_to_end(self, study: Study, plan: Plan) -> str:
        if study.stop_requested:
            return "stopped"
        return self._failures.get((study.uid, study.resumed_at)) or reason_to_end(study, plan, self._now())

    async def _wind_up(self, study: Study, open_trials: Sequence[Trial], reason: str, trouble: str) -> Next:
        """What runs is let end, or was told to; then the study has."""
        self._cancel_ask(study.uid)
        if open_trials:
            running = f"{len(open_trials)} trial{'s' if len(open_trials) > 1 else ''}"
            await self._say(study, f"ending when {running} more ended: {reason}{trouble and '; ' + trouble}")
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
        now = counts.trials, counts.ended
        if self._waiting.get(study.uid) == now:
            return Next.SOON
        if study.uid not in self._asks or self._asks[study.uid][0][0] != counts.trials:
            self._cancel_ask(study.uid)
            task = asyncio.create_task(self._ask(study, plan, room))
            task.add_done_callback(lambda done: self._answered(study, done))
            self._asks[study.uid] = (now, task)
            await asyncio.wait({task}, timeout=PROMPT_SECONDS)
        asked, task = self._asks[study.uid]
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
            # What has ended since then it may not have known of.
            self._waiting[study.uid] = asked
            return Next.SOON if asked == now else Next.AT_ONCE
        await self._studies.append(study.uid, counts.trials, trials, is_exhausted=answer.is_exhausted)
        return Next.AT_ONCE

    async def _ask(self, study: Study, plan: Plan, room: int) -> Answer:
        if parting := self._partings.get(study.uid):
            # It was restarted meanwhile.
            await asyncio.wait({parting})
        # Built-in algorithms know trials by their places.
        is_installed = plan.algorithm not in self._algorithms.built_in()
        history = TrialHistory(self._studies, study, plan, with_values=is_installed)
        return await self._suggestions.ask(study, plan.algorithm, problem_of(study, plan), history, room)

    def _answered(self, study: Study, ask: asyncio.Task[Answer]) -> None:
        if not ask.cancelled():
            self.passes.begin(study.uid, study.kind)

    def _cancel_ask(self, uid: str) -> None:
        if ask := self._asks.pop(uid, None):
            ask[1].cancel()

    # -- beside the passes

    def _watch(self, study: Study, open_trials: Sequence[Trial]) -> None:
        job_ids = [trial.uid for trial in open_trials if trial.status is not TrialStatus.NOTRUN]
        self._ends.watch(study.uid, job_ids, lambda: self.passes.begin(study.uid, study.kind))

    def _forget(self, uid: str) -> None:
        self._plans.pop(uid, None)
        self._failures = {key: text for key, text in self._failures.items() if key[0] != uid}
        self._waiting.pop(uid, None)
        self._cancel_ask(uid)
        self._ends.forget(uid)
        self._follow.forget(uid)
        if uid not in self._partings:
            self._partings[uid] = asyncio.create_task(self._part(uid))

    async def _part(self, uid: str) -> None:
        try:
            await self._suggestions.forget(uid)
        except Exception:
            log.exception("the algorithm of study %s could not be let go", uid)
        finally:
            del self._partings[uid]


def _made_uid() -> str:
    return uuid4().hex
