"""Clients that go away while a search is started or an algorithm is installed: there is all of it then, or none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from servicekit.database import Database
from servicekit.errors import ServiceError
from servicekit.identity import Identity, acting_as
from servicekit.times import utc_now
from studies_room import PlayedJobs, PlayedRunner, request_of
from tuning_service.domain.study import Kind
from tuning_service.storage import MIGRATIONS
from tuning_service.storage.algorithms import SqlAlgorithms
from tuning_service.storage.plugin_folders import DiskPluginFolders
from tuning_service.storage.studies import SqlStudies
from tuning_service.storage.study_folders import DiskStudyFolders
from tuning_service.usecases.algorithms import ManageAlgorithms
from tuning_service.usecases.start_hyper_search import StartHyperSearch, Upload

LIMIT_SECONDS = 240
ADMIN = Identity("Admin", is_admin=True)


@dataclass
class Request:
    """A request that keeps an upload below `root`, and may be held in two places: in the thread that writes its folder,
    and when its row has been written."""

    call: Callable[[], Coroutine[Any, Any, Any]]
    stored: Callable[[], Coroutine[Any, Any, Any]]
    root: Path
    steps: list[str] = field(default_factory=list)
    writes: threading.Event = field(default_factory=threading.Event)
    may_write: threading.Event = field(default_factory=threading.Event)
    has_row: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self, folders: Any, write: str, rows: Any) -> None:
        keep, remove, add = getattr(folders, write), folders.remove, rows.add

        def held_write(*arguments: Any) -> Any:
            self.writes.set()
            assert self.may_write.wait(LIMIT_SECONDS)
            try:
                return keep(*arguments)
            finally:
                self.steps.append("written")

        def told_remove(uid: str) -> None:
            remove(uid)
            self.steps.append("removed")

        async def held_add(row: Any) -> None:
            await add(row)
            self.has_row.set()
            await self.may_go_on.wait()

        setattr(folders, write, held_write)
        folders.remove, rows.add = told_remove, held_add

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []


@pytest.fixture(params=["search", "algorithm"])
async def request_(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Request]:
    database = Database(f"sqlite:///{tmp_path / 'tuning.sqlite'}", "tuning")
    await database.migrate(MIGRATIONS)
    studies, algorithms = SqlStudies(database), SqlAlgorithms(database)
    home, source = tmp_path / "home", tmp_path / "source"
    source.mkdir()
    (source / "optimizer.py").write_text("pass\n")
    if request.param == "search":
        folders = DiskStudyFolders(home)
        programs = PlayedRunner(PlayedJobs(), lambda _: "")
        start = StartHyperSearch(studies, algorithms, programs, folders, utc_now, lambda: None)
        tree = request_of(maxJobNum=1) | {"hpoName": "mine"}
        made = Request(
            lambda: start(tree, Upload(source / "optimizer.py", "main.py")),
            lambda: studies.find(Kind.HYPER_SEARCH, "", "mine"),
            home / "tuning",
        )
        made.hold(folders, "publish", studies)
    else:
        plugins = DiskPluginFolders(home, [tmp_path])
        manage = ManageAlgorithms(algorithms, studies, plugins, utc_now)
        made = Request(
            lambda: manage.install({"name": "mine", "path": str(source)}, None),
            lambda: algorithms.find("mine"),
            home / "algorithms",
        )
        made.hold(plugins, "install", algorithms)
    with acting_as(ADMIN):
        yield made
    await database.close()


async def test_a_client_goes_when_the_row_is_there(request_: Request) -> None:
    request_.may_write.set()
    task = asyncio.create_task(request_.call())
    async with asyncio.timeout(LIMIT_SECONDS):
        await request_.has_row.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        request_.may_go_on.set()
        assert await request_.stored() is not None
    assert len(request_.kept) == 1
    assert request_.steps == ["written"]


async def test_a_client_goes_while_its_upload_is_kept(request_: Request) -> None:
    task = asyncio.create_task(request_.call())
    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.to_thread(request_.writes.wait, LIMIT_SECONDS)
        task.cancel()
        # As long as something may still be written, nothing is removed.
        for _ in range(1000):
            await asyncio.sleep(0)
        request_.may_write.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await request_.stored() is None
    assert request_.steps == ["written", "removed"]
    assert request_.kept == []


async def test_what_cannot_be_stored_leaves_nothing(request_: Request) -> None:
    """Another one of the name came in between."""
    request_.may_write.set()
    request_.may_go_on.set()
    results = await asyncio.gather(request_.call(), request_.call(), return_exceptions=True)
    (refusal,) = (result for result in results if isinstance(result, BaseException))
    assert isinstance(refusal, ServiceError)
    assert refusal.code == 6
    assert len(request_.kept) == 1
