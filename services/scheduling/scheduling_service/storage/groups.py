"""The instance groups that exist."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from servicekit.errors import invalid

from scheduling_service.domain.job import InstanceGroup

# The same on every installation, so that a script may name it.
LOCAL_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "dlmesh:instance-group:local"))


class FixedGroups:
    """One group, `local`: this machine."""

    def __init__(self, slots: int, gpus: int) -> None:
        self._groups = [InstanceGroup(LOCAL_ID, "local", slots, gpus, master_url="local")]

    def get(self, name_or_id: str) -> InstanceGroup:
        if not name_or_id:
            return self._groups[0]
        for group in self._groups:
            if name_or_id in (group.id, group.name):
                return group
        raise invalid("sigid", name_or_id, [group.name for group in self._groups])

    def all(self) -> Sequence[InstanceGroup]:
        return self._groups
