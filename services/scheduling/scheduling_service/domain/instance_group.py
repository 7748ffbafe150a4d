"""An instance group, which jobs share, and what a user may have of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class InstanceGroup:
    """Slots that jobs share. One rank takes one slot; every host has as many slots and GPUs as the others.

    `engine` is a name of the engines' registry, `master_url` where it is reached and `engine_options` its own settings.
    `policy` is a name of the policies' registry. Ranks run as `execution_user`, the platform's own user when empty. A
    group that is not `is_started` starts nothing. A user may hold `max_slots_per_user` at once, 0 is unlimited.
    """

    id: str
    name: str
    slots_per_host: int
    gpus_per_host: int = 0
    hosts: int = 1
    engine: str = "local"
    master_url: str = ""
    history_server_url: str = ""
    policy: str = "fairshare"
    execution_user: str = ""
    max_slots_per_user: int = 0
    is_started: bool = True
    engine_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Of all hosts."""
        return self.hosts * self.slots_per_host

    @property
    def gpus(self) -> int:
        """Of all hosts."""
        return self.hosts * self.gpus_per_host


@dataclass(frozen=True)
class UserShare:
    """What a user may have of a group: of two users with jobs waiting, one with twice the weight is given twice the
    slots, and holds `max_slots` at once at most; 0 is what the group says for everybody."""

    user: str
    weight: float = 1.0
    max_slots: int = 0
