"""Instance groups and what users may have of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from servicekit.database import Database
from servicekit.errors import already_exists, conflict, in_use, invalid, not_found
from servicekit.texts import storable
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.storage.tables import ACTIVE, GROUPS, JOBS, USER_SHARES

# The same on every installation, so that a script may name it.
LOCAL_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "dlmesh:instance-group:local"))
LOCAL_NAME = "local"
# How old what another process wrote may be.
STALE_SECONDS = 1.0


class SqlGroups:
    """`usecases.ports.Groups`. The group `local`, this machine, is always there and is the default."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # What was read last and when: every submission asks for it, and it hardly ever changes.
        self._read_at = 0.0
        self._read_from = 0.0
        # Grows with what this process writes: what was begun to be read before is not what there is.
        self._generation = 0
        self._groups: Sequence[InstanceGroup] = ()
        self._shares: Mapping[str, Sequence[UserShare]] = {}
        self._runs_next: Mapping[str, str] = {}

    async def ensure_local(self, slots: int, gpus: int) -> None:
        """Make the group of this machine, or give it its present size."""
        group = InstanceGroup(LOCAL_ID, LOCAL_NAME, slots, gpus, master_url="local")
        async with self._writing() as session:
            size = {"slots_per_host": slots, "gpus_per_host": gpus}
            result = await session.execute(sa.update(GROUPS).where(GROUPS.c.id == LOCAL_ID).values(**size))
            if isinstance(result, sa.CursorResult) and result.rowcount == 0:
                await session.execute(sa.insert(GROUPS).values(**_row(group)))

    async def get(self, name_or_id: str) -> InstanceGroup:
        groups = await self.all()
        for group in groups:
            if (name_or_id or LOCAL_ID) in (group.id, group.name):
                return group
        raise invalid("sigid", name_or_id, [group.name for group in groups])

    async def find(self, name_or_id: str) -> InstanceGroup:
        for group in await self.all():
            if name_or_id in (group.id, group.name):
                return group
        raise not_found("instance group", name_or_id)

    async def all(self, *, fresh: bool = False) -> Sequence[InstanceGroup]:
        if fresh:
            self._read_at = 0.0
        await self._read()
        return self._groups

    async def _read(self) -> None:
        """Read everything unless that was done a moment ago; what this process writes is read again at once."""
        now = time.monotonic()
        if self._read_at and now - self._read_at < STALE_SECONDS:
            return
        generation = self._generation
        async with self._database.session(read_only=True) as session:
            groups = (await session.execute(sa.select(GROUPS).order_by(GROUPS.c.name))).mappings().all()
            shares = (await session.execute(sa.select(USER_SHARES).order_by(USER_SHARES.c.user))).mappings().all()
        if now < self._read_from:
            # Another one that began later was faster.
            return
        by_group: dict[str, list[UserShare]] = {}
        for row in shares:
            by_group.setdefault(row["group_id"], []).append(UserShare(row["user"], row["weight"], row["max_slots"]))
        self._groups, self._shares, self._read_from = [_group(row) for row in groups], by_group, now
        self._read_at = now if generation == self._generation else 0.0
        self._runs_next = {row["id"]: row["runs_next"] for row in groups if row["runs_next"]}

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncSession]:
        try:
            async with self._database.session() as session:
                yield session
        finally:
            self._generation += 1
            self._read_at = 0.0

    async def add(self, group: InstanceGroup) -> None:
        try:
            async with self._writing() as session:
                await session.execute(sa.insert(GROUPS).values(**_row(group)))
        except IntegrityError:
            raise already_exists("instance group", group.name) from None

    async def change(self, name_or_id: str, change: Callable[[InstanceGroup], InstanceGroup]) -> InstanceGroup:
        named = sa.select(GROUPS).where(sa.or_(GROUPS.c.id == name_or_id, GROUPS.c.name == name_or_id))
        async with self._writing() as session:
            row = (await session.execute(named.with_for_update())).mappings().first()
            if row is None:
                raise not_found("instance group", name_or_id)
            before = _group(row)
            group = change(before)
            moved = (group.engine, group.master_url) != (before.engine, before.master_url)
            if moved and await session.scalar(_unfinished(group.id)):
                raise in_use("instance group", group.name, "jobs that have not ended")
            # Devices are numbered through all hosts.
            renumbered = (group.hosts, group.gpus_per_host) != (before.hosts, before.gpus_per_host)
            if renumbered and await session.scalar(_holding_gpus(group.id)):
                raise in_use("instance group", group.name, "jobs that run on its GPUs: hosts and gpusPerHost stay")
            await session.execute(sa.update(GROUPS).where(GROUPS.c.id == group.id).values(**_row(group)))
        return group

    async def remove(self, group: InstanceGroup) -> None:
        if group.id == LOCAL_ID:
            raise conflict("the group local is this machine and stays; stop it to have nothing started there")
        async with self._writing() as session:
            if await session.scalar(_unfinished(group.id)):
                raise in_use("instance group", group.name, "jobs that have not ended")
            await session.execute(sa.delete(USER_SHARES).where(USER_SHARES.c.group_id == group.id))
            await session.execute(sa.delete(GROUPS).where(GROUPS.c.id == group.id))

    async def set_runs_next(self, group_id: str, name: str) -> None:
        async with self._writing() as session:
            await session.execute(sa.update(GROUPS).where(GROUPS.c.id == group_id).values(runs_next=storable(name)))

    async def runs_next(self) -> Mapping[str, str]:
        await self._read()
        return self._runs_next

    async def shares(self, group_id: str) -> Sequence[UserShare]:
        await self._read()
        return self._shares.get(group_id, ())

    async def set_share(self, group_id: str, share: UserShare) -> None:
        async with self._writing() as session:
            await session.execute(_of_user(group_id, share.user))
            await session.execute(sa.insert(USER_SHARES).values(group_id=group_id, **asdict(share)))

    async def remove_share(self, group_id: str, user: str) -> None:
        async with self._writing() as session:
            result = await session.execute(_of_user(group_id, user))
        if isinstance(result, sa.CursorResult) and result.rowcount == 0:
            raise not_found("share of user", user)


def _unfinished(group_id: str) -> sa.Select[Any]:
    return sa.select(JOBS.c.id).where(JOBS.c.group_id == group_id, JOBS.c.state.in_(ACTIVE)).limit(1)


def _holding_gpus(group_id: str) -> sa.Select[Any]:
    runs = sa.and_(JOBS.c.group_id == group_id, JOBS.c.state == "RUNNING")
    # JSON of PostgreSQL cannot be compared.
    return sa.select(JOBS.c.id).where(runs, sa.cast(JOBS.c.gpus, sa.Text) != "[]").limit(1)


def _of_user(group_id: str, user: str) -> sa.Delete:
    return sa.delete(USER_SHARES).where(USER_SHARES.c.group_id == group_id, USER_SHARES.c.user == user)


def _row(group: InstanceGroup) -> dict[str, Any]:
    return {**asdict(group), "engine_options": dict(group.engine_options)}


def _group(row: Mapping[Any, Any]) -> InstanceGroup:
    values = {str(name): value for name, value in row.items() if name != "runs_next"}
    return InstanceGroup(**values)
