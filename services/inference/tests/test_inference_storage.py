"""The repositories on every supported database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from inference_service.domain.models import ModelState
from inference_service.domain.predictions import Prediction, Sample, Status
from inference_service.storage import MIGRATIONS
from inference_service.storage.rows import SqlInferenceModels, SqlPredictions
from inference_service.storage.tables import Base
from servicekit.database import Database
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
    model.exported()
    await models.save(model)
    # A request that still has the model as it was when it wrote the row.
    stale = make_model("online", Path(), Path(), catalog_uid="listed")
    await models.note_listed(stale)
    [found] = await models.all()
    assert (found.state, found.catalog_uid) == (ModelState.LOADING, "listed")
    await models.delete(model.uid)
    assert await models.all() == []


async def test_predictions(database: Database) -> None:
    predictions = SqlPredictions(database)
    first, second = make_prediction("a"), make_prediction("b", "other")
    await predictions.add(first)
    await predictions.add(second)
    assert await predictions.find("a") == first
    assert [each.name for each in await predictions.all()] == ["a", "b"]
    assert [each.name for each in await predictions.all("other")] == ["b"]
    assert await predictions.uids() == {"uid-a", "uid-b"}
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
