"""Uploads whose clients go away, or that come together, on a real database and disk."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from inference_fakes import FakeJobs, FakeServer
from inference_service.domain.predictions import Prediction
from inference_service.storage import MIGRATIONS, workspace
from inference_service.storage.inputs import DiskInputs
from inference_service.storage.model_rows import SqlInferenceModels
from inference_service.storage.rows import SqlPredictions
from inference_service.storage.workspace import STRAY_SECONDS, DiskWorkspace
from inference_service.usecases.ports import Upload
from inference_service.usecases.start_prediction import PredictionRequest, StartPrediction
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.identity import acting_as
from testkit.services import ALICE
from triton_fixtures import make_model


class Slow(SqlPredictions):
    """A row that is committed is told of once `may_return` is set."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.committed, self.may_return = asyncio.Event(), asyncio.Event()

    async def add(self, prediction: Prediction) -> None:
        await super().add(prediction)
        self.committed.set()
        await self.may_return.wait()


@pytest.fixture
async def predictions(tmp_path: Path) -> AsyncIterator[Slow]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'inference.db'}", "inference")
    await database.migrate(MIGRATIONS)
    model = make_model("online", tmp_path / "code", tmp_path / "checkpoints")
    await SqlInferenceModels(database).add(replace(model, owner="alice", instance_group="local"))
    with acting_as(ALICE):
        yield Slow(database)
    await database.close()


def use_case(predictions: Slow, home: Path, max_active: int = 2) -> StartPrediction:
    return StartPrediction(
        predictions,
        SqlInferenceModels(predictions._database),
        FakeJobs(),
        FakeServer(),
        DiskWorkspace(home, (), 1000),
        DiskInputs(()),
        lambda: None,
        max_active,
    )


def upload(name: str) -> Callable[[Path], object]:
    async def receive(spool: Path) -> PredictionRequest:
        spool.mkdir(parents=True)
        (spool / "part-0").write_bytes(b"seven")
        return PredictionRequest(name, "online", "0.5", [Upload("7.png", spool / "part-0")])

    return receive


async def test_a_client_that_goes_away_at_the_commit_leaves_a_whole_prediction(
    predictions: Slow, tmp_path: Path
) -> None:
    starting = asyncio.create_task(use_case(predictions, tmp_path)(upload("p")))
    await predictions.committed.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    predictions.may_return.set()
    found = await predictions.find("p")
    assert found is not None
    folder = tmp_path / "inference" / "predictions" / found.uid / "input"
    assert [each.read_bytes() for each in folder.iterdir()] == [b"seven"]


async def test_a_client_that_goes_away_while_files_are_kept_leaves_nothing(
    predictions: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_keeping, may_go_on = threading.Event(), threading.Event()
    write = workspace.write_manifest

    def slowly(*arguments: object) -> None:
        is_keeping.set()
        may_go_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(workspace, "write_manifest", slowly)
    starting = asyncio.create_task(use_case(predictions, tmp_path)(upload("p")))
    await asyncio.to_thread(is_keeping.wait, 60)
    starting.cancel()
    # Time to remove what is still written.
    await asyncio.wait([starting], timeout=0.2)
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert list((tmp_path / "inference" / "predictions").iterdir()) == []
    assert await predictions.find("p") is None


async def test_uploads_that_come_together_are_counted_when_they_are_whole(predictions: Slow, tmp_path: Path) -> None:
    start = use_case(predictions, tmp_path)
    predictions.may_return.set()
    ends = await asyncio.gather(*(start(upload(f"p{number}")) for number in range(5)), return_exceptions=True)
    refused = [each for each in ends if isinstance(each, ServiceError)]
    assert [each.code for each in refused] == [Code.RESOURCE_EXHAUSTED] * 3
    assert await predictions.count_active("alice") == 2
    assert {each.name for each in (tmp_path / "inference" / "predictions").iterdir()} == await predictions.uids()


async def test_files_are_durable_before_the_manifest_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.partition(".manifest")[0] or "manifest")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    kept = DiskWorkspace(tmp_path, (), 1000)
    spool = kept.folder("u1") / "spool"
    spool.mkdir(parents=True)
    uploads = [Upload(f"{number}.png", spool / f"part-{number}") for number in range(3)]
    for each in uploads:
        each.path.write_bytes(b"x")
    await kept.keep("u1", uploads)
    assert sorted(done[:3]) == ["part-0", "part-1", "part-2"]
    assert done[3:] == ["manifest", "input", "u1", "predictions"]


async def test_folders_that_a_program_closed_are_removed_and_what_cannot_be_does_not_end_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = DiskWorkspace(tmp_path, (), 1000)
    old = time.time() - STRAY_SECONDS - 60
    for uid in ("a", "b", "known"):
        output = kept.folder(uid) / "output"
        (output / "closed").mkdir(parents=True)
        (output / "closed" / "file").touch()
        output.chmod(0o500)
        os.utime(kept.folder(uid), (old, old))
    (tmp_path / "inference" / "predictions" / "a-file").touch()
    stuck: list[str] = []
    remove = workspace.remove_folder

    def first_refuses(folder: Path) -> None:
        if not stuck:
            stuck.append(folder.name)
            raise PermissionError(13, "not ours")
        remove(folder)

    monkeypatch.setattr(workspace, "remove_folder", first_refuses)
    await kept.remove_strays({"known"})
    assert {each.name for each in (tmp_path / "inference" / "predictions").iterdir()} == {"a-file", "known", *stuck}
    monkeypatch.undo()
    await kept.remove("known")
    await kept.remove("known")
    assert not kept.folder("known").exists()
    kept.folder(stuck[0]).joinpath("output").chmod(0o700)


async def test_a_stray_that_vanishes_in_this_moment_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = DiskWorkspace(tmp_path, (), 1000)
    kept.folder("u1").mkdir(parents=True)
    is_dir = Path.is_dir

    def and_gone(path: Path) -> bool:
        found = is_dir(path)
        if path == kept.folder("u1") and found:
            path.rmdir()
        return found

    monkeypatch.setattr(Path, "is_dir", and_gone)
    await kept.remove_strays(set())
    assert not kept.folder("u1").exists()
