"""The repositories on every supported database."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from inference_service.domain.models import ModelState
from inference_service.domain.predictions import Prediction, Sample, Status
from inference_service.storage import MIGRATIONS
from inference_service.storage.model_rows import SqlInferenceModels
from inference_service.storage.rows import SqlPredictions
from inference_service.storage.specs import PredictionSpec
from inference_service.storage.tables import Base
from inference_service.storage.workspace import DiskWorkspace
from inference_service.worker.manifest import read_manifest
from servicekit.database import Database, UtcDateTime
from servicekit.errors import Code, ServiceError
from servicekit.jobs import InstanceGroup
from servicekit.times import utc_now
from triton_fixtures import make_model


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "inference")
    await database.migrate(MIGRATIONS)
    yield database
    await database.close()


def make_prediction(name: str = "p", model_name: str = "online") -> Prediction:
    return Prediction(
        uid=f"uid-{name}",
        name=name,
        owner="alice",
        model_uid="m",
        model_name=model_name,
        group=InstanceGroup("g", "local", "local://here"),
        created_at=utc_now(),
        job_id=f"job-{name}",
        threshold="0.5",
        samples=[Sample("ä.png", "00000-_.png")],
    )


async def test_a_model_comes_back_as_it_was(database: Database) -> None:
    models = SqlInferenceModels(database)
    model = make_model("online", Path("/code"), Path("/checkpoints"))
    await models.add(model)
    assert await models.find("online") == model
    assert await models.find("other") is None
    with pytest.raises(ServiceError) as caught:
        await models.add(make_model("online", Path(), Path(), uid="other"))
    assert caught.value.code is Code.ALREADY_EXISTS
    model.versions[0].exported()
    await models.save_version(model.uid, model.versions[0])
    # A request that still has the model as it was when it wrote the row.
    stale = make_model("online", Path(), Path(), catalog_uid="listed")
    await models.note_listed(stale)
    [found] = await models.all()
    assert (found.state, found.catalog_uid) == (ModelState.LOADING, "listed")
    await models.delete(model.uid)
    assert await models.all() == []


async def test_versions_of_a_model(database: Database) -> None:
    models = SqlInferenceModels(database)
    model = make_model("online", Path("/code"), Path("/checkpoints"))
    await models.add(model)
    await models.add(make_model("other", Path(), Path()))
    second = replace(model.versions[0], training_name="second", percentage=0)
    assert (await models.add_version(model.uid, second)).number == 2
    # The loop's state and a user's shares do not overwrite each other.
    found = await models.find("online")
    assert found is not None
    for version in found.versions:
        version.state = ModelState.READY
        await models.save_version(model.uid, version)
    stale = replace(model, versions=[replace(version) for version in found.versions])
    stale.versions[0].percentage, stale.versions[1].percentage = 10, 90
    stale.versions[1].state = ModelState.EXPORTING
    await models.save_traffic(stale)
    found = await SqlInferenceModels(database).find("online")
    assert found is not None
    assert [(each.number, each.training_name, each.percentage, each.state) for each in found.versions] == [
        (1, "first", 10, "READY"),
        (2, "second", 90, "READY"),
    ]
    assert found.main_version == 2
    # What a version waited for when it was still loading is said no more.
    await models.note_waiting(model.uid, 1, "Triton does not answer")
    again = await models.find("online")
    assert again is not None
    assert (again.versions[0].state, again.versions[0].status_message) == (ModelState.READY, "")
    # A number is never given twice, and what was read is the reader's own.
    await models.delete_version(model.uid, 2)
    assert (await models.add_version(model.uid, second)).number == 3
    found.versions.clear()
    again = await models.find("online")
    assert again is not None
    assert [each.number for each in again.versions] == [1, 3]
    other = await models.find("other")
    assert other is not None
    assert (other.last_version, len(other.versions)) == (1, 1)
    with pytest.raises(ServiceError) as caught:
        await models.add_version("gone", second)
    assert caught.value.code is Code.NOT_FOUND
    now = utc_now()
    await models.note_used(model.uid, now)
    again = await models.find("online")
    assert again is not None
    assert again.last_used_at == now
    await models.delete(model.uid)
    await models.add(model)
    again = await models.find("online")
    assert again is not None
    assert len(again.versions) == 1, "versions go with their model"


async def test_models_of_the_first_tables_are_version_1_with_all_traffic(database_url: str, tmp_path: Path) -> None:
    first = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, first, ignore=shutil.ignore_patterns("20261127*", "__pycache__"))
    database = Database(database_url, "inference")
    await database.migrate(first)
    async with database.session() as session:
        values = "'u', 'online', 'alice', 'digits', 'first', 'PyTorch', 't', 'd', 'local', '/code', '/weights'"
        columns = "uid, name, owner, source_model, training_name, framework, template_name, dataset_name, "
        columns += "instance_group, code_path, checkpoints_path, created_at, state, status_message, catalog_uid"
        written = f"INSERT INTO inference_models ({columns}) VALUES ({values}, :now, 'READY', '', 'c')"
        await session.execute(sa.text(written).bindparams(sa.bindparam("now", utc_now(), UtcDateTime)))
    await database.migrate(MIGRATIONS)
    [model] = await SqlInferenceModels(database).all()
    [version] = model.versions
    assert (model.name, model.catalog_uid, model.last_version, model.last_used_at) == ("online", "c", 1, None)
    assert (version.number, version.percentage, version.state) == (1, 100, ModelState.READY)
    assert (version.source_model, version.code_path, version.checkpoints_path) == ("digits", "/code", "/weights")
    await database.close()


async def test_predictions_of_the_first_tables_stay_as_they_are(database_url: str, tmp_path: Path) -> None:
    first = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, first, ignore=shutil.ignore_patterns("20261127*", "__pycache__"))
    database = Database(database_url, "inference")
    await database.migrate(first)
    samples = json.dumps([{"id": f"{index}.png", "file": f"0000{index}-_.png"} for index in range(4)])
    columns = (
        "uid, name, owner, model_uid, model_name, instance_group, created_at, job_id, threshold, samples, status, "
    )
    columns += "status_message, progress, driver_id, accepted, stop_requested, best"
    group = json.dumps({"id": "g", "name": "local", "master_url": ""})
    written = (
        f"INSERT INTO predictions ({columns}) VALUES (:name, :name, 'alice', 'm', 'online', :group, :now, :name, "
        "'0.5', :samples, :status, '', :progress, '', :accepted, :stop, NULL)"
    )
    async with database.session() as session:
        for name, status, progress in (("ended", "FINISHED", 100), ("waits", "SUBMITTED", 0)):
            values = {"name": name, "group": group, "samples": samples, "status": status, "progress": progress}
            values |= {"accepted": status == "FINISHED", "stop": False}
            await session.execute(
                sa.text(written).bindparams(sa.bindparam("now", utc_now(), UtcDateTime)), values | {"now": utc_now()}
            )
    await database.migrate(MIGRATIONS)
    ended, waits = sorted(await SqlPredictions(database).all(), key=lambda each: each.name)
    assert (ended.sample_count, ended.done, ended.result_file) == (4, 4, "results.json")
    assert (waits.sample_count, waits.done, waits.model_version, waits.input_path) == (4, 0, 1, "")
    assert waits.samples == ended.samples
    await database.close()
    # Who has not been submitted yet gets the manifest that uploads have now.
    workspace = DiskWorkspace(tmp_path, [tmp_path], 1 << 20)
    [*_, file] = await workspace.prepare(waits)
    spec = PredictionSpec.read(file)
    assert [sample for _, sample in read_manifest(Path(spec.manifest))] == waits.samples
    assert spec.input_dir == str(tmp_path / "inference" / "predictions" / "waits" / "input")


def test_what_was_submitted_before_manifests_is_understood(tmp_path: Path) -> None:
    old = {
        "model_name": "online",
        "bundle": "/repository/online/1/bundle",
        "address_file": "/triton.json",
        "input_dir": str(tmp_path / "input"),
        "output_file": str(tmp_path / "output" / "results.json"),
        "threshold": 0.5,
        "samples": [{"id": "a", "file": "00000-a"}],
    }
    (tmp_path / "spec.json").write_text(json.dumps(old))
    spec = PredictionSpec.read(tmp_path / "spec.json")
    assert (spec.output_dir, spec.model_version, spec.roots) == (str(tmp_path / "output"), 1, (old["input_dir"],))
    assert [sample for _, sample in read_manifest(Path(spec.manifest))] == [Sample("a", "00000-a")]


async def test_predictions(database: Database) -> None:
    predictions = SqlPredictions(database)
    first, second = make_prediction("a"), make_prediction("b", "other")
    await predictions.add(first)
    await predictions.add(second)
    assert await predictions.find("a") == first
    assert [each.name for each in await predictions.all()] == ["a", "b"]
    assert [each.name for each in await predictions.all("other")] == ["b"]
    assert await predictions.uids() == {"uid-a", "uid-b"}
    assert (await predictions.count_active("alice"), await predictions.count_active("bob")) == (2, 0)
    with pytest.raises(ServiceError) as caught:
        await predictions.add(make_prediction("a"))
    assert caught.value.code is Code.ALREADY_EXISTS
    # The loop's state and a user's stop do not overwrite each other.
    await predictions.request_stop(first.uid)
    first.end(Status.FINISHED, "")
    first.best = {"sample": "ä.png", "index": 0, "label": "ä", "probability": 0.5}
    await predictions.save_state(first)
    found = await predictions.find("a")
    assert found is not None
    assert (found.stop_requested, found.status, found.best) == (True, Status.FINISHED, first.best)
    assert [each.name for each in await predictions.active()] == ["b"]
    assert await predictions.count_active("alice") == 1
    await predictions.delete(first.uid)
    assert await predictions.find("a") is None


async def test_the_migration_makes_what_the_tables_say(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    async with database.engine.begin() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
        )
    assert [each for each in differences if "alembic_version" not in str(each)] == []
