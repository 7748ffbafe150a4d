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
    return job.state is State.SUBMITTED and not job.waits_because


def reason_of(job: Job, runs_next: str, stopped_group: str = "") -> str:
    """Why a job waits, or ended as it did.

    `runs_next` is the name of the job that runs next in its group, if any; `stopped_group` that of a group that is
    stopped.
    """
    return why(job.state, job.reason, job.waits_because, runs_next, stopped_group)


def why(state: State, reason: str, because: str, runs_next: str, stopped_group: str = "") -> str:
    """As `reason_of`, of a job with this `state`, `reason` and `waits_because`."""
    if state is State.SUBMITTED and not because:
        if stopped_group:
            because = is_stopped(stopped_group)
        elif runs_next:
            because = f"behind {runs_next}, which runs next"
    return f"{reason} ({because})" if reason and because else reason or because


def is_stopped(group: str) -> str:
    """What all wait for in the group of this name."""
    return f"instance group {group} is stopped"
