"""Instance groups: made, changed and removed by administrators, read by everyone."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from servicekit.errors import invalid
from servicekit.identity import Identity

from scheduling_service.domain.group_rules import check_group, check_share
from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.usecases.ports import Engines, Groups

# Given by this machine and by DLMESH_SLOTS, whatever the request says.
_OF_THIS_MACHINE = {
    "engine": "engine",
    "hosts": "hosts",
    "slots_per_host": "slotsPerHost",
    "gpus_per_host": "gpusPerHost",
}


@dataclass(frozen=True)
class Settings:
    """What a request says of a group; None where it says nothing. An option with an empty value goes."""

    id: str | None = None
    name: str | None = None
    engine: str | None = None
    master_url: str | None = None
    history_server_url: str | None = None
    hosts: int | None = None
    slots_per_host: int | None = None
    gpus_per_host: int | None = None
    policy: str | None = None
    execution_user: str | None = None
    max_slots_per_user: int | None = None
    is_started: bool | None = None
    engine_options: Mapping[str, str] = field(default_factory=dict)

    def over(self, group: InstanceGroup) -> InstanceGroup:
        """`group` with what is said here."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        merged = {**group.engine_options, **self.engine_options}
        given["engine_options"] = {name: value for name, value in merged.items() if value}
        return replace(group, **given)


class InstanceGroups:
    """Every change wakes the queue, which plans anew. 403 for a change by anybody but an administrator."""

    def __init__(self, groups: Groups, engines: Engines, wake: Callable[[], None]) -> None:
        self._groups, self._engines, self._wake = groups, engines, wake

    async def list(self) -> Sequence[InstanceGroup]:
        """All, by name."""
        return await self._groups.all()

    async def get(self, name_or_id: str) -> InstanceGroup:
        """404 when there is none."""
        return await self._groups.find(name_or_id)

    async def create(self, identity: Identity, settings: Settings) -> InstanceGroup:
        """A started group; 409 when the name is taken."""
        identity.require_admin("make instance groups")
        if settings.id is not None:
            raise invalid("id", settings.id, "nothing: the platform makes it")
        if settings.is_started is False:
            raise invalid("state", "STOPPED", "STARTED, or nothing: a new group is started")
        group = settings.over(InstanceGroup(uuid.uuid4().hex, "", slots_per_host=0))
        await self._check(group)
        await self._groups.add(group)
        self._wake()
        return group

    async def update(self, identity: Identity, name_or_id: str, settings: Settings) -> InstanceGroup:
        """Changes what `settings` says; 409 when engine or master change under jobs that have not ended."""
        identity.require_admin("change instance groups")
        default = await self._groups.get("")

        def change(group: InstanceGroup) -> InstanceGroup:
            _check_kept(group, settings)
            changed = settings.over(group)
            if group.id == default.id:
                _check_size_kept(group, changed)
            return changed

        await self._check(change(await self._groups.find(name_or_id)))
        group = await self._groups.change(name_or_id, change)
        self._wake()
        return group

    async def delete(self, identity: Identity, name_or_id: str) -> None:
        """409 while jobs of it have not ended, and for the default group."""
        identity.require_admin("delete instance groups")
        await self._groups.remove(await self._groups.find(name_or_id))
        self._wake()

    async def set_started(self, identity: Identity, name_or_id: str, started: bool) -> None:
        """Whether jobs of it may start."""
        identity.require_admin("start and stop instance groups")
        await self._groups.change(name_or_id, lambda group: replace(group, is_started=started))
        self._wake()

    async def shares(self, name_or_id: str) -> Sequence[UserShare]:
        """Of the users that have one of their own."""
        return await self._groups.shares((await self._groups.find(name_or_id)).id)

    async def set_share(self, identity: Identity, name_or_id: str, share: UserShare) -> None:
        """Replaces the user's."""
        identity.require_admin("set shares")
        check_share(share)
        await self._groups.set_share((await self._groups.find(name_or_id)).id, share)
        self._wake()

    async def remove_share(self, identity: Identity, name_or_id: str, user: str) -> None:
        """404 when the user has none of their own."""
        identity.require_admin("remove shares")
        await self._groups.remove_share((await self._groups.find(name_or_id)).id, user)
        self._wake()

    async def _check(self, group: InstanceGroup) -> None:
        check_group(group, self._engines.names())
        self._engines.check_group(group)
        machine = await self._groups.get("")
        if group.engine == machine.engine and group.gpus_per_host > machine.gpus_per_host:
            allowed = f"0 to {machine.gpus_per_host}, the GPUs of this machine"
            raise invalid("gpusPerHost", group.gpus_per_host, allowed)


def _check_kept(group: InstanceGroup, settings: Settings) -> None:
    started = "STARTED" if group.is_started else "STOPPED"
    if settings.id not in {None, group.id}:
        raise invalid("id", settings.id, f"{group.id}, which stays")
    if settings.name not in {None, group.name}:
        raise invalid("name", settings.name, f"{group.name}, which stays")
    if settings.is_started not in {None, group.is_started}:
        raise invalid("state", "STARTED" if settings.is_started else "STOPPED", f"{started}; start and stop change it")


def _check_size_kept(group: InstanceGroup, changed: InstanceGroup) -> None:
    for name, rest_name in _OF_THIS_MACHINE.items():
        before, after = getattr(group, name), getattr(changed, name)
        if before != after:
            why = "the group local is this machine; DLMESH_SLOTS says how many ranks run at once"
            raise invalid(rest_name, after, f"{before}: {why}")
