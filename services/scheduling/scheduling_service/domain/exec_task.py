"""An exec task: a job with an upload of its own; its id is the job's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from scheduling_service.domain.job import Spec, State


@dataclass(frozen=True)
class ExecTask:
    """What was asked for: the command line and the job that it became. A trial belongs to a service's study."""

    id: str
    owner: str
    group_id: str
    arguments: str
    spec: Spec
    created_at: datetime
    is_trial: bool = False


@dataclass(frozen=True)
class ExecView:
    """A task as it stands; `state` and what follows are those of its job, and as if it waited before it has one."""

    id: str
    owner: str
    group_id: str
    group_name: str
    master_url: str
    execution_user: str
    arguments: str
    created_at: datetime
    state: str = "SUBMITTED"
    reason: str = ""
    ended_at: datetime | None = None
    application_id: str = ""
    driver_id: str = ""
    warning: str = ""
    log_tail: str = ""

    @property
    def status_message(self) -> str:
        """Why it waits or ended as it did; of a program that failed, the last lines, too."""
        if self.state == State.ERROR:
            return "\n".join(part for part in (self.reason, self.warning, self.log_tail) if part)
        return "; ".join(part for part in (self.reason, self.warning) if part)
