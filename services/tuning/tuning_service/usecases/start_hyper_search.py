"""Start a hyperparameter search: read the request, keep the upload, check that a trial could run, write one row."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from servicekit.errors import ServiceError, already_exists, invalid
from servicekit.identity import current_identity
from servicekit.jobs import MAX_PRIORITY
from servicekit.names import check_name
from servicekit.threads import in_thread

from tuning_service.domain.fields import Fields
from tuning_service.domain.plan import AlgorithmFacts, Plan, algorithm_name, outline, read_plan
from tuning_service.domain.study import Kind, Study
from tuning_service.usecases.ports import Algorithms, Studies, StudyFolders, Wake
from tuning_service.usecases.warm_start import findings

RESERVED = frozenset({"algorithm"})
MAX_ARGUMENTS = 100_000


@dataclass(frozen=True)
class Upload:
    """The file of a request: where it was received, and what its sender calls it."""

    path: Path
    name: str


class Programs(Protocol):
    """The scheduling service, as searches over programs need it beside `ports.Runner`."""

    async def check(self, study: Study) -> tuple[str, str]:
        """Id and name of the instance group that a study's trials will run on; 400 when they never could."""


class StartHyperSearch:
    """Callable with the request's `data` and its upload; the stored study. 400 for what can never run."""

    def __init__(
        self,
        studies: Studies,
        algorithms: Algorithms,
        programs: Programs,
        folders: StudyFolders,
        now: Callable[[], datetime],
        wake: Wake,
    ) -> None:
        self._studies, self._algorithms, self._programs = studies, algorithms, programs
        self._folders, self._now, self._wake = folders, now, wake

    async def __call__(self, tree: Mapping[str, Any], upload: Upload | None) -> Study:
        fields = Fields("", tree)
        owner = current_identity().user
        name = fields.text("hpoName", default=made_name(owner))
        check_name("hpoName", name, RESERVED)
        plan = await read_request(fields, self._algorithms, Kind.HYPER_SEARCH)
        known = await findings(plan, Kind.HYPER_SEARCH, "", self._studies)
        _check_program(fields)
        if await self._studies.find(Kind.HYPER_SEARCH, "", name):
            raise already_exists("HPO task", name)
        uid = uuid4().hex
        try:
            path = await in_thread(self._folders.publish, uid, upload.path) if upload else ""
            study = Study(
                uid=uid,
                name=name,
                kind=Kind.HYPER_SEARCH,
                owner=owner,
                request=dict(tree),
                group_id="",
                group_name="",
                seed=seed_of(plan),
                known=known,
                created_at=self._now(),
                upload=path,
                upload_name=upload.name if upload else "",
                **outline(fields, plan),
            )
            study.group_id, study.group_name = await self._programs.check(study)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._folders.remove, uid))
            raise
        # A client that goes away now has a search all the same, or none: nothing in between.
        return await asyncio.shield(self._add(study))

    async def _add(self, study: Study) -> Study:
        try:
            await self._studies.add(study)
        except ServiceError:
            await asyncio.to_thread(self._folders.remove, study.uid)
            raise
        # Whatever else is thrown may come after the commit: a folder without a row is removed as an orphan.
        self._wake()
        return study


async def read_request(fields: Fields, algorithms: Algorithms, kind: Kind) -> Plan:
    """The plan of a request; 400, which lists the known algorithms when it names none of them."""
    return read_plan(fields, await find_algorithm(fields, algorithms), kind.experiment_parameters)


async def find_algorithm(fields: Fields, algorithms: Algorithms) -> AlgorithmFacts:
    """The algorithm that a request names; 400 listing the known ones."""
    name = algorithm_name(fields)
    found = await algorithms.find(name)
    if found is None:
        installed = [one.name for one in await algorithms.installed()]
        raise invalid("algoDef.algorithm", name, [*algorithms.built_in(), *installed])
    return found


def seed_of(plan: Plan) -> int:
    """The user's seed, or one that is drawn now and kept with the study."""
    given = plan.settings.get("RandomSeed")
    try:
        return secrets.randbits(62) if given is None else int(given) & (2**63 - 1)
    except ValueError:
        # A plug-in's own idea of a seed.
        return secrets.randbits(62)


def _check_program(fields: Fields) -> None:
    program = fields.object("modelSpec", required=True)
    program.text("sigName")
    arguments = program.text("args")
    if len(arguments) > MAX_ARGUMENTS:
        raise invalid("modelSpec.args", f"({len(arguments)} characters)", f"at most {MAX_ARGUMENTS} characters")
    fields.within(-MAX_PRIORITY, MAX_PRIORITY, 0, "priority")


def made_name(owner: str) -> str:
    """A name for a search that was given none; in the form that notebooks know."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '', owner)[:64] or 'user'}-hpo-{secrets.randbelow(10**16):016d}"
