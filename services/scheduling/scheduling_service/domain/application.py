"""A job as clients know it: by names of the engine, with a reason even when nobody looked at it."""

from __future__ import annotations

from scheduling_service.domain.job import Job, State

_DRIVER_PREFIX = "driver-"


def application_id(job: Job) -> str:
    """The engine's name of the newest attempt, the job's own where there is none."""
    return job.application_id or job.id


def driver_id(job: Job) -> str:
    """What keeps the gang, by the engine's name where it has one."""
    return job.driver_id or f"{_DRIVER_PREFIX}{job.id}"


def job_of_driver(driver: str) -> str:
    """The job whose driver this is where the engine has no name for it."""
    return driver.removeprefix(_DRIVER_PREFIX)


def needs_reason(job: Job) -> bool:
    """True when the queue did not say what it waits for: it did not look at each of those far behind."""
    return job.state is State.SUBMITTED and not _says_what_for(job.reason, job.attempt)


def reason_of(job: Job, runs_next: str, stopped_group: str = "") -> str:
    """Why a job waits, or ended as it did.

    `runs_next` is the name of the job that runs next in its group, if any; `stopped_group` that of a group that is
    stopped.
    """
    waits = job.state is State.SUBMITTED
    reason = why_it_waits(job.reason, job.attempt, runs_next, stopped_group) if waits else job.reason
    # What a first attempt waits for stands behind nothing.
    return reason[1:-1] if reason.startswith("(") and reason.endswith(")") else reason


def why_it_waits(reason: str, attempt: int, runs_next: str, stopped_group: str = "") -> str:
    """As `reason_of`, of a job that waits."""
    what_for = f"behind {runs_next}, which runs next" if runs_next else ""
    if stopped_group:
        what_for = is_stopped(stopped_group)
    if _says_what_for(reason, attempt) or not what_for:
        return reason
    # As Job.wait says it: why there is another attempt stands before what it waits for.
    return f"{reason} ({what_for})" if reason else what_for


def is_stopped(group: str) -> str:
    """What all wait for in the group of this name."""
    return f"instance group {group} is stopped"


def _says_what_for(reason: str, attempt: int) -> bool:
    return reason.endswith(")") if attempt else bool(reason)
