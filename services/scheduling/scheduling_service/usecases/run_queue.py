"""One step of the loop: settle what ended, stop what should, start what fits."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from servicekit.reconcile import Next

from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.job import Job, State
from scheduling_service.domain.ledger import GroupLedger, Ledger
from scheduling_service.domain.observation import Observation, Phase
from scheduling_service.domain.planning import Plan, Start, name_of, plan
from scheduling_service.usecases.ports import Groups, Jobs, RunDirectories, Runner

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
TAIL_LINES = 20
# How long an elastic gang runs, and slots stay free, before it grows: a restart costs seconds.
GROW_AFTER_SECONDS = 5.0
GROUP_DELETED = "its instance group was deleted"
# An attempt that has not begun after this long is one that waits for its engine.
SLOW_START_SECONDS = 2.0
# How old what is known of progress may be.
PROGRESS_SECONDS = 1.0


class RunQueue:
    """The only caller of the engines; may be killed anywhere: a step looks at rows and at the engines, never back.

    The rows of jobs that have not ended are kept in a ledger between steps: a step reads what is new, not everything.
    Whatever contradicts the ledger, such as another process that took the lease over, makes it read all of them again.
    """

    def __init__(
        self,
        jobs: Jobs,
        groups: Groups,
        runner: Runner,
        directories: RunDirectories,
        now: Callable[[], datetime],
        holder: str,
        grow_after_seconds: float = GROW_AFTER_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        tell_end: Callable[[str], None] = lambda job_id: None,
    ) -> None:
        """`tell_end` is called with the id of a job once its row says that it has ended."""
        self._jobs, self._groups, self._runner, self._directories = jobs, groups, runner, directories
        self._now, self._holder, self._grow_after_seconds = now, holder, grow_after_seconds
        self._lease_seconds, self._tell_end = lease_seconds, tell_end
        self._leads_until: datetime | None = None
        self._ledger: Ledger | None = None
        self._seen_sequence = 0
        self._progress_read_at: datetime | None = None
        # By group: since when nobody waits and a slot is free.
        self._idle_since: dict[str, datetime] = {}
        self._runs_next: dict[str, str] = {}
        # Attempts that take long to begin.
        self._starting: set[str] = set()
        # Jobs whose dependencies were not looked at yet.
        self._new_dependents: list[str] = []
        # Those that no ledger takes, and why: they came in the moment in which their group was deleted, say.
        self._homeless: list[tuple[Job, str]] = []

    async def step(self) -> Next:
        try:
            return await self._step()
        except BaseException:
            # Whatever was half done is read from the rows again.
            self._ledger = None
            raise

    async def _step(self) -> Next:
        ledger = await self._read_news()
        told = any(self._runs_next.get(group.group.id, "?") for group in ledger.groups)
        if not (len(ledger) or told or self._homeless):
            return Next.LATER
        if not await self._lead():
            return Next.LATER
        # The lease may have been somebody else's since the last step.
        ledger = await self._read_news() if self._ledger is None else self._ledger
        while self._new_dependents:
            dependent = ledger.get(self._new_dependents.pop())
            if dependent is not None:
                await self._look_at_dependencies(ledger, dependent)
        changed = False
        if self._homeless:
            while self._homeless:
                await self._end_homeless(ledger, *self._homeless.pop())
            # It may hold a part of what it did not take.
            self._ledger = None
            return Next.AT_ONCE
        for job in [*self._to_tend(ledger)]:
            if ledger.get(job.id) is not job:
                # It fell with one that it waited for.
                continue
            try:
                changed |= await self._tend(ledger, job)
            except Exception:
                # One bad job must not hold up the queue. What its row says now is read again, and those that wait for
                # it look at it themselves: it may have ended before it went wrong.
                log.exception("job %s could not be tended", job.id)
                self._new_dependents += [other.id for other in ledger.waiting_for(job.id)]
                await self._read_again(ledger, job)
        ledger.wake_paused(self._now())
        for group in ledger.groups:
            try:
                changed = await self._decide(ledger, group) or changed
            except Exception:
                # Nor must one group hold up the others.
                log.exception("nothing can be decided for instance group %s now", group.group.name)
                self._ledger = None
        if self._ledger is None:
            return Next.LATER
        if changed:
            return Next.AT_ONCE
        return Next.SOON if next(ledger.running(), None) is not None else Next.LATER

    async def _lead(self) -> bool:
        now = self._now()
        if self._leads_until is None or now > self._leads_until - timedelta(seconds=self._lease_seconds / 2):
            if not await self._jobs.lead(self._holder, self._lease_seconds, now):
                self._leads_until = None
                return False
            if self._leads_until is None or now > self._leads_until:
                self._ledger = None
            self._leads_until = now + timedelta(seconds=self._lease_seconds)
        return True

    async def _read_news(self) -> Ledger:
        ledger = self._ledger
        if ledger is None:
            ledger = Ledger()
            await self._read_groups(ledger, fresh=True)
            self._seen_sequence = 0
            self._runs_next = {}
            self._homeless = []
            self._note(ledger, await self._jobs.active())
            for group in ledger.groups:
                # Whatever an earlier process told them.
                group.told = {job.id for job in group.all_waiting() if job.waits_because}
            self._ledger = ledger
            return ledger
        news = await self._jobs.news(self._seen_sequence)
        # From memory, mostly; one that is not known another process may have made a moment ago.
        await self._read_groups(ledger, fresh=any(not ledger.knows_group(row.group_id) for row in news))
        self._note(ledger, news)
        return ledger

    async def _read_groups(self, ledger: Ledger, *, fresh: bool = False) -> None:
        groups = await self._groups.all(fresh=fresh)
        for group in groups:
            ledger.set_group(group, await self._groups.shares(group.id))
        gone = ledger.forget_groups_but({group.id for group in groups})
        self._homeless += [(job, GROUP_DELETED) for job in gone]

    def _note(self, ledger: Ledger, rows: Sequence[Job]) -> None:
        for row in rows:
            self._seen_sequence = max(self._seen_sequence, row.sequence)
            known = ledger.get(row.id)
            if not ledger.knows_group(row.group_id):
                self._homeless.append((row, GROUP_DELETED))
            elif known is None:
                try:
                    ledger.put(row)
                except Exception as error:
                    # Whatever is wrong with it, the others must not wait for it.
                    log.exception("job %s cannot be queued", row.id)
                    self._homeless.append((row, f"it cannot be queued: {error!r}"))
                    continue
                if row.waits_for:
                    self._new_dependents.append(row.id)
            elif row.stop_requested and not known.stop_requested:
                known.stop_requested = True
                ledger.put(known)

    async def _read_again(self, ledger: Ledger, job: Job) -> None:
        ledger.drop(job.id)
        for row in await self._jobs.find([job.id]):
            if not row.state.is_final:
                ledger.put(row)

    async def _save(self, ledger: Ledger, job: Job) -> None:
        """Write the row, then note it: what the rows do not hold the ledger does not either."""
        await self._jobs.save(job)
        self._put(ledger, job)

    def _put(self, ledger: Ledger, job: Job) -> None:
        if job.state.is_final:
            ledger.drop(job.id)
            self._tell_end(job.id)
        else:
            ledger.put(job)

    def _to_tend(self, ledger: Ledger) -> Iterable[Job]:
        yield from ledger.stopping()
        yield from self._runner.due(job for job in ledger.running() if not job.stop_requested)

    async def _tend(self, ledger: Ledger, job: Job) -> bool:
        group = ledger.group(job.group_id).group
        if job.state is State.SUBMITTED:
            if job.stop_requested:
                job.kill("stopped" if job.attempt else "stopped before it was started", self._now())
                await self._save(ledger, job)
                await self._after_the_end(ledger, job)
                return True
            return False
        seen = await self._runner.observe(job, group)
        match seen.phase:
            case Phase.UNKNOWN:
                # The row said RUNNING and then we were killed: launch now what was decided then.
                if not (job.stop_requested or job.resizing):
                    await self._launch_again(ledger, job, group)
                    return True
                # A launch that was under way must not come late.
                await self._runner.stop(job, group)
                if (await self._runner.observe(job, group)).phase is not Phase.UNKNOWN:
                    return True
                if job.stop_requested:
                    job.kill("stopped before it was started", self._now())
                else:
                    job.resume()
                await self._save(ledger, job)
                await self._after_the_end(ledger, job)
                return True
            case Phase.STARTING | Phase.RUNNING:
                if self._note_observed(job, seen):
                    await self._save(ledger, job)
                if job.stop_requested or job.resizing:
                    await self._runner.stop(job, group)
                return False
        await self._settle(job, seen)
        self._put(ledger, job)
        await self._after_the_end(ledger, job)
        return True

    async def _launch_again(self, ledger: Ledger, job: Job, group: InstanceGroup) -> None:
        """Launch what was decided before; what cannot be launched pauses as one that the platform lost."""
        try:
            await self._runner.launch(job, group)
        except Exception as error:
            log.exception("job %s could not be launched", job.id)
            # Nothing of it may come late.
            await self._runner.stop(job, group)
            if (await self._runner.observe(job, group)).phase in (Phase.STARTING, Phase.RUNNING):
                return
            now = self._now()
            job.lose(f"it could not be launched: {error}", self._retry_at(job, now), now)
            await self._save(ledger, job)
            await self._after_the_end(ledger, job)

    def _note_observed(self, job: Job, seen: Observation) -> bool:
        """What the engine calls it, why it has not begun, and when it did; False when the row says all of it."""
        changed = False
        if (seen.application_id, seen.driver_id) != (job.application_id, job.driver_id):
            job.application_id, job.driver_id = seen.application_id, seen.driver_id
            changed = True
        if seen.phase is Phase.STARTING:
            if seen.reason and not job.resizing:
                changed |= job.wait(seen.reason)
            if self._seconds_of_attempt(job) > SLOW_START_SECONDS:
                self._starting.add(job.id)
        elif job.id in self._starting:
            # From here on it counts how long it has run.
            self._starting.discard(job.id)
            job.attempt_started_at = self._now()
            if not job.resizing:
                job.wait("")
            changed = True
        return changed

    def _seconds_of_attempt(self, job: Job) -> float:
        return (self._now() - (job.attempt_started_at or self._now())).total_seconds()

    async def _settle(self, job: Job, seen: Observation) -> None:
        # Facts that could not be pushed while we were away lie in the spool.
        await self._jobs.report(job.id, job.attempt, await asyncio.to_thread(self._directories.report, job))
        now = self._now()
        self._starting.discard(job.id)
        job.ranks = seen.ranks
        job.application_id = seen.application_id or job.application_id
        job.driver_id = seen.driver_id or job.driver_id
        if seen.phase is Phase.FINISHED:
            job.finish(now)
        elif job.stop_requested:
            job.kill("stopped", now)
        elif seen.phase is Phase.STOPPED and job.resizing:
            # With code 0 everywhere the program says that it is done, asked to end or not.
            if job.ranks and all(rank.exit_code == 0 for rank in job.ranks):
                job.finish(now)
            else:
                job.resume()
        elif seen.phase is Phase.FAILED:
            failed = seen.failed_rank if seen.failed_rank is not None else 0
            job.log_tail = await asyncio.to_thread(self._directories.tail, job, failed, TAIL_LINES)
            # By its exit code a program says that its input will not do: it would fail again.
            final = seen.final or any(rank.exit_code == os.EX_DATAERR for rank in job.ranks)
            reason = seen.reason or "the program failed"
            job.fail_program(reason, self._retry_at(job, now), now, final=final)
        else:  # LOST, or stopped by somebody else than us: a machine going down, say
            job.lose(seen.reason or "the ranks were stopped from outside", self._retry_at(job, now), now)
        if job.not_before is not None and (pause := (job.not_before - now).total_seconds()) > 0:
            job.wait(f"pauses {pause:.0f} s before it is started again")
        await self._jobs.save(job)
        log.info("job %s (%s): attempt %d is %s %s", job.id, job.spec.name, job.attempt, job.state, job.reason)

    def _retry_at(self, job: Job, now: datetime) -> datetime:
        return now + timedelta(seconds=job.retry_seconds())

    async def _look_at_dependencies(self, ledger: Ledger, job: Job) -> None:
        """Those that it waits for may have ended before we came to know it."""
        if not job.waits_for:
            return
        found = {other.id: other for other in await self._jobs.find(job.waits_for)}
        for job_id in list(job.waits_for):
            other = found.get(job_id)
            if other is None:
                await self._give_up(ledger, job, f"job {job_id}, which it waits for, is gone")
                return
            if other.state.is_final:
                await self._follow(ledger, job, other)
            if job.state.is_final:
                await self._after_the_end(ledger, job)
            if job.state.is_final or job.stop_requested:
                return
        if job.waits_for:
            names = ", ".join(name_of(other) for other in found.values() if other.id in job.waits_for)
            if job.wait(f"waits for {names} to finish"):
                await self._save(ledger, job)

    async def _after_the_end(self, ledger: Ledger, job: Job) -> None:
        """Those that wait for it may start, or fall with it one after the other, however long their chain is."""
        ended = deque([job])
        while ended:
            job = ended.popleft()
            if job.state.is_final:
                for follower in ledger.waiting_for(job.id):
                    await self._follow(ledger, follower, job)
                    ended.append(follower)

    async def _follow(self, ledger: Ledger, job: Job, ended: Job) -> None:
        if job.stop_requested:
            # Its own stop settles it.
            return
        if ended.state is State.FINISHED:
            job.finished_before(ended.id)
            if not job.waits_for:
                job.wait("")
        else:
            job.give_up(f"{name_of(ended)}, which it waits for, ended as {ended.state}", self._now())
        await self._save(ledger, job)

    async def _end_homeless(self, ledger: Ledger, job: Job, reason: str) -> None:
        if job.state is State.RUNNING and ledger.knows_group(job.group_id):
            try:
                await self._runner.stop(job, ledger.group(job.group_id).group)
            except Exception:
                # Whatever is wrong with it, the others must not wait for it.
                log.exception("job %s could not be stopped", job.id)
        await self._give_up(ledger, job, reason)

    async def _give_up(self, ledger: Ledger, job: Job, reason: str) -> None:
        job.give_up(reason, self._now())
        await self._save(ledger, job)
        await self._after_the_end(ledger, job)

    async def _decide(self, ledger: Ledger, group: GroupLedger) -> bool:
        now = self._now()
        idle_seconds = self._idle_seconds(group, now)
        if idle_seconds >= self._grow_after_seconds and group.giving:
            await self._read_progress(group, now)
        decided = plan(group, now, idle_seconds=idle_seconds, grow_after_seconds=self._grow_after_seconds)
        for start in decided.start:
            await self._start(ledger, group, start, now)
        for job_id, reason in decided.resize.items():
            await self._make_end(ledger, group.running[job_id], Job.resize, reason)
        for job_id, reason in decided.suspend.items():
            await self._make_end(ledger, group.running[job_id], Job.suspend, reason)
        await self._say_why(group, decided)
        return bool(decided.start or decided.resize or decided.suspend)

    async def _start(self, ledger: Ledger, group: GroupLedger, start: Start, now: datetime) -> None:
        job = start.job
        job.start(start.ranks, now, start.gpus, is_backfill=start.is_backfill)
        # The row first: after a kill here the next step finds the attempt UNKNOWN and launches it.
        await self._jobs.begin(job)
        ledger.put(job)
        try:
            await self._runner.launch(job, group.group)
        except Exception:
            log.exception("job %s could not be launched yet", job.id)

    async def _make_end(self, ledger: Ledger, job: Job, how: Callable[[Job, str], None], reason: str) -> None:
        how(job, reason)
        # The row first, here too: whoever reads it next asks the gang to end.
        await self._save(ledger, job)
        await self._runner.stop(job, ledger.group(job.group_id).group)
        log.info("job %s (%s): attempt %d %s", job.id, job.spec.name, job.attempt, reason)

    async def _say_why(self, group: GroupLedger, decided: Plan) -> None:
        """Reasons of those that were looked at; what was said to others before is taken back."""
        changed = []
        for job_id in group.told - decided.reasons.keys():
            job = group.waiting(job_id)
            if job is not None and job.wait(""):
                changed.append(job)
        for job_id, reason in decided.reasons.items():
            job = group.waiting(job_id)
            if job is not None and job.wait(reason):
                changed.append(job)
        group.told = set(decided.reasons)
        if changed:
            await self._jobs.save_reasons(changed)
        if self._runs_next.get(group.group.id) != decided.runs_next:
            await self._groups.set_runs_next(group.group.id, decided.runs_next)
            self._runs_next[group.group.id] = decided.runs_next

    async def _read_progress(self, group: GroupLedger, now: datetime) -> None:
        if self._progress_read_at and 0 <= (now - self._progress_read_at).total_seconds() < PROGRESS_SECONDS:
            return
        self._progress_read_at = now
        known = await self._jobs.progress([job_id for _, job_id in group.giving])
        for job_id, progress in known.items():
            group.running[job_id].progress = progress

    def _idle_seconds(self, group: GroupLedger, now: datetime) -> float:
        if group.free <= 0 or len(group.backlog) or group.returning or group.paused:
            self._idle_since.pop(group.group.id, None)
            return 0.0
        return (now - self._idle_since.setdefault(group.group.id, now)).total_seconds()
