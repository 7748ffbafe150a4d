"""Gangs on a Spark cluster: one application an attempt, its driver and its ranks' keepers being programs of ours.

What became of an attempt is what our driver and keepers wrote into its directory, which all hosts share; the master is
asked only for a driver that has not come yet. So a master that is away ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.engines import outcomes
from scheduling_service.engines.base import Attempt, AttemptFacts, Engine, Observation, Phase, ProcessFacts
from scheduling_service.engines.environment import inherited
from scheduling_service.engines.spark import files, group_rules, rank, submission
from scheduling_service.engines.spark.files import processes, records

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

ASK_SECONDS = 2.0
SUBMIT_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
# How long a master may not know a driver that it took: one that was started again remembers within seconds.
FORGOTTEN_SECONDS = 20.0
# Kubernetes and YARN tell us nothing: a driver that has not come for so long will not.
START_SECONDS = 900.0
THREADS = 4
ENDING = "what the attempt had started is being ended"


@dataclass
class _Watched:
    """What this process remembers of an attempt; another one learns it anew."""

    is_launched: bool = False
    asking: asyncio.Task[None] | None = None
    ask_at: float = 0.0
    state: submission.DriverState | None = None
    missing_since: float | None = None
    trouble: str = ""
    beat: int = 0
    beat_at: float = field(default_factory=time.monotonic)
    seen_at: float = field(default_factory=time.monotonic)


class SparkEngine(Engine):
    """Any master: its URL and settings come with each attempt. Groups that do not use Spark cost nothing."""

    def __init__(self, home: Path, warm_pool: bool = True) -> None:
        self._home = home
        self._watched: dict[Path, _Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # For talking to masters only: one that does not answer must not hold up anybody else's work.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="spark")

    @property
    def version(self) -> str:
        return submission.VERSION

    def check_group(self, group: InstanceGroup) -> None:
        group_rules.check(group)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def launch(self, attempt: Attempt) -> None:
        directory = attempt.directory
        watched = self._watched.setdefault(directory, _Watched())
        if watched.is_launched or _came(directory) or _kept(directory, files.SUBMISSION_FILE).exists():
            return
        # Before anything is waited for, so that a second launch finds it.
        watched.is_launched = True
        try:
            await asyncio.to_thread(_write_spec, attempt, self._home)
        except BaseException:
            watched.is_launched = False
            raise
        # A master may take its time, and the queue has others to start.
        self._spawn(self._launched(attempt, watched))

    async def observe(self, directory: Path) -> Observation:
        driver = records.read(_kept(directory, files.DRIVER_FILE))
        if driver is None and _kept(directory, files.DRIVER_FILE).exists():
            # Of a driver that came, whatever became of its record.
            driver = {}
        names: dict[str, Any] = {key: outcomes.name_of(driver, key) for key in ("application_id", "driver_id")}
        alive = driver is not None and self._lives(directory, driver)
        # Read after looking whether the driver lives: it writes the outcome before it ends.
        if _kept(directory, files.OUTCOME_FILE).exists():
            settled = outcomes.observation_of(records.read(_kept(directory, files.OUTCOME_FILE)) or {}, **names)
            # What died with Spark's processes may have left something that the next attempt must not meet.
            if settled.phase is Phase.LOST and await self._is_ending(directory):
                return Observation(Phase.STARTING, ENDING, **names)
            self._watched.pop(directory, None)
            return settled
        spec = records.read(_kept(directory, files.SPEC_FILE))
        if driver is not None:
            if alive:
                who = records.process_of(driver)
                keeper_pid = who.pid if who is not None and who.boot_id == processes.boot_id() else 0
                wanted, started = _count(spec, "ranks"), _count(driver, "ranks_started")
                if started >= wanted:
                    return Observation(Phase.RUNNING, keeper_pid=keeper_pid, **names)
                reason = f"Spark has started {started} of {wanted} ranks"
                return Observation(Phase.STARTING, reason, keeper_pid=keeper_pid, **names)
            return await self._give_up(directory, spec or {}, names)
        return self._observe_submission(directory, spec)

    async def stop(self, directory: Path) -> None:
        kept = records.folder(directory)
        if not (kept / files.SPEC_FILE).exists() or (kept / files.OUTCOME_FILE).exists():
            return
        with contextlib.suppress(FileExistsError):
            os.close(os.open(kept / files.STOP_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        if (kept / files.DRIVER_FILE).exists():
            return
        if _seal(directory, Phase.STOPPED, "stopped before it was started"):
            self._spawn(self._kill(directory))

    async def describe(self, directory: Path) -> AttemptFacts:
        return await asyncio.to_thread(_facts, directory)

    def _observe_submission(self, directory: Path, spec: dict[str, Any] | None) -> Observation:
        """Of an attempt whose driver has not come: as long as Spark may still start it, it is waited for."""
        watched = self._watched.setdefault(directory, _Watched())
        submitted = _submission_of(directory)
        if submitted is None:
            if watched.is_launched:
                return Observation(Phase.STARTING, watched.trouble)
            if spec is not None and records.is_locked(_kept(directory, files.LOCK_FILE)):
                return Observation(Phase.STARTING)
            # Of a process that was killed before or while it submitted. To launch again is safe either way.
            del self._watched[directory]
            return Observation(Phase.UNKNOWN)
        driver_id = submitted.driver_id
        reason = self._why_no_driver(watched, submitted)
        if reason and _seal(directory, Phase.LOST, reason):
            return Observation(Phase.LOST, reason, driver_id=driver_id)
        now = time.monotonic()
        if submitted.is_standalone and watched.asking is None and now >= watched.ask_at:
            watched.ask_at = now + ASK_SECONDS
            watched.asking = self._spawn(self._ask(watched, spec or {}, driver_id))
        waits = "" if watched.state is None or watched.state.name != "SUBMITTED" else "Spark has no room for the driver"
        return Observation(Phase.STARTING, watched.trouble or waits, driver_id=driver_id)

    def _why_no_driver(self, watched: _Watched, submitted: _Submission) -> str:
        """Why no driver will come; empty while one may."""
        if not submitted.is_standalone:
            late = time.monotonic() - watched.seen_at > START_SECONDS
            return f"no driver came within {START_SECONDS:.0f} s; ask Spark for it" if late else ""
        state = watched.state
        if state is None or not state.is_over:
            watched.missing_since = None
            return ""
        now = time.monotonic()
        watched.missing_since = watched.missing_since or now
        # A driver that has just ended may be seen as ended before what it wrote is seen here.
        patience = FORGOTTEN_SECONDS if state.name == "NOT_FOUND" else ASK_SECONDS
        if now - watched.missing_since < patience:
            return ""
        return f"Spark says that the driver {submitted.driver_id} is {state.name} {state.message}".strip()

    def _lives(self, directory: Path, driver: dict[str, Any]) -> bool:
        """Its lock tells of a driver on this host; of one elsewhere its heartbeat does, where locks are not shared."""
        if records.is_locked(records.folder(directory) / files.LOCK_FILE):
            return True
        return driver.get("boot_id") != processes.boot_id() and not self._is_silent(directory)

    def _is_silent(self, directory: Path) -> bool:
        """Whether the driver's heartbeat has stood still, by our clock; the file's own time is compared with itself
        only. Later than that no keeper runs a rank, whether it sees our files or not."""
        watched = self._watched.setdefault(directory, _Watched())
        try:
            beat = (records.folder(directory) / files.HEARTBEAT_FILE).stat().st_mtime_ns
        except OSError:
            beat = 0
        now = time.monotonic()
        if beat != watched.beat:
            watched.beat, watched.beat_at = beat, now
        return now - watched.beat_at >= files.GONE_SECONDS

    async def _is_ending(self, directory: Path) -> bool:
        """Kill what a lost attempt left on this host; True until there was nothing, here and, as far as keepers of
        other hosts say so in time, there."""
        is_silent = self._is_silent(directory)
        if await asyncio.to_thread(rank.sweep, directory):
            return True
        return not is_silent and any(
            record.get("ended") is False and not _is_of_this_boot(record) for record in _rank_records(directory)
        )

    async def _give_up(self, directory: Path, spec: dict[str, Any], names: dict[str, Any]) -> Observation:
        """The driver is gone without a word: lost, once nothing of it runs any more."""
        reason = "the driver went without a word"
        if not _seal(directory, Phase.LOST, reason, ranks=_ranks(directory, spec)):
            return Observation(Phase.STARTING, **names)
        self._spawn(self._kill(directory))
        # The keepers see the outcome and end their ranks; the attempt is over when they have.
        if await self._is_ending(directory):
            return Observation(Phase.STARTING, ENDING, **names)
        return outcomes.observation_of(records.read(_kept(directory, files.OUTCOME_FILE)) or {}, **names)

    async def _launched(self, attempt: Attempt, watched: _Watched) -> None:
        try:
            await self._submit(attempt, watched)
        except OSError as error:
            # A full disk, say. It is launched again then; of two drivers one does nothing.
            watched.trouble = f"the attempt cannot be recorded: {error}"
            log.warning("attempt %s: %s", attempt.directory, watched.trouble)
            await asyncio.sleep(SUBMIT_RETRY_SECONDS[-1])
            watched.is_launched = False

    async def _submit(self, attempt: Attempt, watched: _Watched) -> None:
        """Until Spark has taken it: a master that is away is asked again."""
        directory = attempt.directory
        tries = 0
        while not _came(directory):
            try:
                driver_id = await self._hand_over(attempt)
            except submission.RefusedError as error:
                _seal(directory, Phase.FAILED, f"Spark refused the attempt: {error}", final=True)
                return
            except submission.UnreachableError as error:
                watched.trouble = f"{attempt.master_url} does not take it: {error}"
                log.warning("attempt %s: %s", directory, watched.trouble)
                await asyncio.sleep(SUBMIT_RETRY_SECONDS[min(tries, len(SUBMIT_RETRY_SECONDS) - 1)])
                tries += 1
                continue
            standalone = submission.STANDALONE.fullmatch(attempt.master_url) is not None
            taken = {"driver_id": driver_id, "standalone": standalone}
            await asyncio.to_thread(records.write, _kept(directory, files.SUBMISSION_FILE), taken)
            watched.trouble = ""
            if _kept(directory, files.OUTCOME_FILE).exists():
                await self._kill(directory)
            return

    async def _hand_over(self, attempt: Attempt) -> str:
        """The driver's id. RefusedError and UnreachableError as of the master."""
        if submission.STANDALONE.fullmatch(attempt.master_url):
            master = submission.StandaloneMaster(attempt.master_url, attempt.options)
            return await self._in_thread(lambda: master.create(attempt, submission.properties(attempt)))
        words = submission.command(attempt, submission.spark_home_of())
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=inherited(os.environ),
            )
        except OSError as error:
            raise submission.RefusedError(f"{words[0]} cannot be run: {error.strerror}") from error
        _, said = await process.communicate()
        if process.returncode != 0:
            lines = said.decode(errors="replace").strip().splitlines() or ["it does not say why"]
            raise submission.UnreachableError(lines[-1][:300])
        return "" if attempt.master_url == submission.YARN else submission.pod_name(attempt)

    async def _ask(self, watched: _Watched, spec: dict[str, Any], driver_id: str) -> None:
        try:
            master = _master_of(spec)
            watched.state = await self._in_thread(lambda: master.state(driver_id))
            watched.trouble = ""
        except submission.UnreachableError as error:
            watched.trouble = f"{spec.get('master_url')} does not answer: {error}"
            watched.state = None
        except submission.RefusedError as error:
            watched.trouble = f"{spec.get('master_url')} says: {error}"
        finally:
            watched.asking = None

    async def _kill(self, directory: Path) -> None:
        """Best effort: a driver that comes all the same does nothing."""
        submitted, spec = _submission_of(directory), records.read(_kept(directory, files.SPEC_FILE))
        if spec is None or submitted is None or not submitted.is_standalone:
            return
        with contextlib.suppress(submission.UnreachableError, submission.RefusedError):
            master = _master_of(spec)
            await self._in_thread(lambda: master.kill(submitted.driver_id))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a call of Spark failed", exc_info=error)

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _came(directory: Path) -> bool:
    return any(_kept(directory, name).exists() for name in (files.DRIVER_FILE, files.OUTCOME_FILE))


def _kept(directory: Path, name: str) -> Path:
    """A record of the attempt."""
    return records.folder(directory) / name


def _count(record: dict[str, Any] | None, key: str) -> int:
    number = (record or {}).get(key)
    return number if type(number) is int else 0


@dataclass(frozen=True)
class _Submission:
    """What Spark took; `driver_id` is empty where it does not name drivers."""

    driver_id: str
    is_standalone: bool


def _submission_of(directory: Path) -> _Submission | None:
    """None while there is none, or what is there is none of ours."""
    record = records.read(_kept(directory, files.SUBMISSION_FILE))
    if record is None:
        return None
    driver_id, is_standalone = outcomes.name_of(record, "driver_id"), record.get("standalone") is True
    # It becomes a part of an address.
    if is_standalone and submission.STANDALONE_DRIVER.fullmatch(driver_id) is None:
        return None
    return _Submission(driver_id, is_standalone)


def _master_of(spec: dict[str, Any]) -> submission.StandaloneMaster:
    """RefusedError when the record names none."""
    url, options = spec.get("master_url"), spec.get("options")
    return submission.StandaloneMaster(str(url), options if isinstance(options, dict) else {})


def _write_spec(attempt: Attempt, home: Path) -> None:
    directory = attempt.directory
    directory.mkdir(parents=True, exist_ok=True)
    kept = records.make(directory)
    spec = {
        "job_id": attempt.job_id,
        "attempt": attempt.number,
        "ranks": attempt.ranks,
        "command": list(attempt.command),
        "environment": dict(attempt.environment),
        "working_directory": attempt.working_directory or str(directory),
        "grace_seconds": attempt.grace_seconds,
        "max_seconds": attempt.max_seconds,
        "max_silent_seconds": attempt.max_silent_seconds,
        "max_disk_bytes": attempt.max_disk_bytes,
        "memory_bytes_per_rank": attempt.memory_bytes_per_rank,
        "cores_per_rank": attempt.cores_per_rank,
        "warning": attempt.warning,
        "execution_user": attempt.execution_user,
        "home": str(home.resolve()),
        "data_roots": [str(root) for root in attempt.data_roots],
        "master_url": attempt.master_url,
        "options": dict(attempt.options),
    }
    (kept / files.LOG_SETTINGS).write_text(submission.LOG4J)
    # The environment holds the job's token.
    records.write(kept / files.SPEC_FILE, spec, mode=0o600)


def _seal(
    directory: Path, phase: Phase, reason: str, *, final: bool = False, ranks: list[dict[str, Any]] | None = None
) -> bool:
    """End an attempt that has no driver, so that one that comes late does nothing; False when it has one."""
    kept = records.folder(directory)
    with records.open_lock(kept / files.LOCK_FILE) as lock:
        if not records.take(lock) or (kept / files.OUTCOME_FILE).exists():
            return False
        if ranks is None and (kept / files.DRIVER_FILE).exists():
            return False
        outcome = {"state": phase.value, "reason": reason, "failed_rank": None, "final": final, "ranks": ranks or []}
        records.write(kept / files.OUTCOME_FILE, outcome)
        return True


def _ranks(directory: Path, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """What is known of the ranks of an attempt whose driver is gone."""
    found = [records.read(_kept(directory, files.rank_file(number))) or {} for number in range(_count(spec, "ranks"))]
    return [
        {"rank": number, "pid": record.get("pid", 0), "exit_code": record.get("exit_code")}
        for number, record in enumerate(found)
    ]


def _rank_records(directory: Path) -> list[dict[str, Any]]:
    return [records.read(path) or {} for path in records.folder(directory).glob("rank-*.json")]


def _is_of_this_boot(record: dict[str, Any]) -> bool:
    who = record.get("keeper")
    return isinstance(who, dict) and who.get("boot_id") == processes.boot_id()


def _usage_of(directory: Path, name: str) -> dict[str, float]:
    record = records.read(_kept(directory, name)) or {}
    return {key: float(record[key]) for key in ("cores_used", "memory_mb") if type(record.get(key)) in (int, float)}


def _facts(directory: Path) -> AttemptFacts:
    spec = records.read(_kept(directory, files.SPEC_FILE)) or {}
    driver = records.read(_kept(directory, files.DRIVER_FILE)) or {}
    over = _kept(directory, files.OUTCOME_FILE).exists()
    submitted = _submission_of(directory)
    driver_id = outcomes.name_of(driver, "driver_id") or (submitted.driver_id if submitted else "")
    executors = []
    for number in range(_count(spec, "ranks")):
        record = records.read(_kept(directory, files.rank_file(number))) or {}
        ended = over or record.get("ended", True)
        usage = {} if ended else _usage_of(directory, files.usage_file(number))
        executors.append(
            ProcessFacts(
                str(number),
                host=outcomes.name_of(record, "host"),
                container_id=outcomes.name_of(record, "container_id"),
                stdout=str(directory / f"rank-{number}.out"),
                stderr=str(directory / f"rank-{number}.err"),
                **usage,
            )
        )
    usage = {} if over else _usage_of(directory, files.DRIVER_USAGE)
    facts = ProcessFacts(
        driver_id,
        host=outcomes.name_of(driver, "host"),
        container_id=driver_id,
        stdout=str(_kept(directory, "driver.out")),
        stderr=str(_kept(directory, "driver.err")),
        **usage,
    )
    port = "" if over else outcomes.name_of(driver, "ui").rpartition(":")[2]
    return AttemptFacts(facts, tuple(executors), ui_port=port)
