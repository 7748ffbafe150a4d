"""What is removed of models and versions that are gone, while others come; on a real disk."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inference_fakes import FakeCatalog
from inference_service.domain.models import InferenceModel, ModelState
from inference_service.storage.repository import DiskRepository
from inference_service.usecases.remove_models import RemoveDeleted
from triton_fixtures import make_model


class FakeModels:
    """Rows."""

    def __init__(self) -> None:
        self.known: dict[str, InferenceModel] = {}

    async def all(self) -> list[InferenceModel]:
        return [model.copy() for model in self.known.values()]

    async def find(self, name: str) -> InferenceModel | None:
        return self.known[name].copy() if name in self.known else None

    async def delete(self, uid: str) -> None:
        self.known = {name: model for name, model in self.known.items() if model.uid != uid}


class FakeResidency:
    """Nothing is in memory; remembers what was dropped."""

    def __init__(self) -> None:
        self.loaded: dict[str, frozenset[int]] = {}
        self.dropped: list[str] = []

    def is_loading(self, name: str) -> bool:
        return False

    async def drop(self, name: str) -> None:
        self.dropped.append(name)


class Unused:
    """No predictions, and no folders of them."""

    async def uids(self) -> set[str]:
        return set()

    async def remove_strays(self, known: set[str]) -> None:
        return None


class Room:
    def __init__(self, home: Path) -> None:
        self.home, self.models, self.catalog, self.residency = home, FakeModels(), FakeCatalog(), FakeResidency()
        parts: Any = self.models, Unused(), self.catalog, DiskRepository(home), self.residency, Unused()
        self.step = RemoveDeleted(*parts)

    def add(self, name: str, uid: str) -> InferenceModel:
        """A row, its entry and what is listed."""
        model = make_model(name, Path(), Path(), uid=uid)
        model.versions[0].state = ModelState.READY
        self.catalog.add(name)
        model.catalog_uid = self.catalog.known[name].uid
        self.models.known[name] = model
        self.folder(name, 1)
        (self.entry(name) / ".dlmesh-uid").write_text(uid)
        return model

    def entry(self, name: str) -> Path:
        return self.home / "inference" / "repository" / name

    def folder(self, name: str, number: int) -> None:
        (self.entry(name) / str(number)).mkdir(parents=True)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


async def test_a_version_that_comes_while_others_are_asked_stays(room: Room) -> None:
    model = room.add("online", "first")
    room.folder("online", 7)
    find = room.catalog.find

    async def meanwhile(name: str) -> Any:
        if len(model.versions) == 1:
            model.versions.append(replace(model.versions[0], number=2, state=ModelState.LOADING))
            room.folder("online", 2)
        return await find(name)

    room.catalog.find = meanwhile  # type: ignore[method-assign]
    await room.step()
    assert sorted(folder.name for folder in room.entry("online").glob("[0-9]*")) == ["1", "2"]


async def test_who_comes_second_does_not_remove_what_has_the_name_by_then(room: Room) -> None:
    old = room.add("online", "old")
    room.catalog.known.clear()
    find, answers = room.catalog.find, asyncio.Event()

    async def slowly(name: str) -> Any:
        found = await find(name)
        await answers.wait()
        return found

    room.catalog.find = slowly  # type: ignore[method-assign]
    first, second = (asyncio.create_task(room.step.remove_if_deleted(old)) for _ in range(2))
    await asyncio.sleep(0)
    answers.set()
    await first
    # As a create request does that waited for the first.
    room.add("online", "new")
    assert await second
    assert room.residency.dropped == ["online"]
    assert room.models.known["online"].uid == "new"
    assert (room.entry("online") / "1").is_dir()


async def test_what_kills_have_left_is_swept_and_what_is_in_use_stays(room: Room) -> None:
    room.add("online", "uid-online")
    room.folder("gone", 1)
    room.residency.loaded = {"leaving": frozenset({1})}
    inference = room.home / "inference"
    stay = [inference / "drafts" / "uid-online"]
    stay += [inference / "rooms" / name for name in ("online@2@7", "leaving@1@8", "tmp")]
    go = [inference / "drafts" / name for name in ("uid-gone", "repository-gone.removed", "online-2-7.removed")]
    go += [inference / "rooms" / "gone@3@9"]
    for folder in stay + go:
        (folder / "deep").mkdir(parents=True)
    await room.step()
    assert [folder for folder in stay if not folder.exists()] == []
    assert [folder for folder in (*go, room.entry("gone")) if folder.exists()] == []
    assert room.entry("online").is_dir()
