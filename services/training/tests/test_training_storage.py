"""The repositories on every supported database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from training_fakes import make_training, make_validation
from training_service.domain.metrics import MetricPoint
from training_service.domain.runs import Status
from training_service.storage import MIGRATIONS
from training_service.storage.metrics import SqlMetrics
from training_service.storage.runs import SqlTrainings, SqlValidations


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "training")
    await database.migrate(MIGRATIONS)
    yield database
    await database.close()


async def test_a_training_comes_back_as_it_was(database: Database) -> None:
    trainings = SqlTrainings(database)
    training = make_training(weights_file="/w.pth", gpu_ratio=50)
    await trainings.add(training)
    assert await trainings.find(training.model_uid, "first") == training
    assert await trainings.find("another model", "first") is None
    assert await trainings.models() == [(training.model_uid, training.model_name)]
    with pytest.raises(ServiceError) as caught:
        await trainings.add(make_training(uid="other", job_id="other"))
    assert caught.value.code is Code.ALREADY_EXISTS
    await trainings.add(make_training(uid="other", job_id="other", model_uid="another model"))


async def test_the_loop_and_a_stop_do_not_overwrite_each_other(database: Database) -> None:
    trainings = SqlTrainings(database)
    await trainings.add(make_training())
    [seen_by_loop] = await trainings.active()
    await trainings.request_stop(seen_by_loop.uid)
    seen_by_loop.status, seen_by_loop.progress = Status.RUNNING, 40
    await trainings.save_state(seen_by_loop)
    [both] = await trainings.active()
    assert (both.stop_requested, both.status, both.progress) == (True, Status.RUNNING, 40)


async def test_validations_keep_their_pairs_and_leave_the_active_ones_when_they_end(database: Database) -> None:
    validations = SqlValidations(database)
    validation = make_validation(metrics=["Top1", "Top5"], threshold=0.25)
    await validations.add(validation)
    validation.status, validation.pairs = Status.FINISHED, [("Top1", "0.9"), ("Top5", "1")]
    await validations.save_state(validation)
    assert await validations.find(validation.model_uid, "check") == validation
    assert await validations.active() == []


async def test_metrics_are_idempotent_and_go_with_their_training(database: Database) -> None:
    trainings, metrics = SqlTrainings(database), SqlMetrics(database)
    training = make_training()
    await trainings.add(training)

    def points(attempt: int, steps: range, value: float) -> list[MetricPoint]:
        return [MetricPoint(training.job_id, attempt, "train_loss", step, value, 1.0) for step in steps]

    assert await metrics.add([]) == 0
    assert await metrics.add(points(1, range(2500), 0.5)) == 2500
    assert await metrics.add(points(1, range(2400, 2600), 0.7)) == 100
    assert await metrics.add([*points(1, range(1), 9.0), *points(1, range(1), 9.0)]) == 0
    # Restarted from a checkpoint at step 2500: the newest attempt's value of a step counts.
    await metrics.add(points(2, range(2500, 2501), 0.1))
    curve = await metrics.read(training.job_id, ["train_loss"])
    assert [point.step for point in curve] == list(range(2600))
    assert [curve[step].value for step in (0, 2499, 2500, 2501)] == [0.5, 0.5, 0.1, 0.7]
    assert await metrics.read(training.job_id, ["test_loss"]) == []
    await trainings.delete(training.uid)
    assert await metrics.read(training.job_id, []) == []
    assert await trainings.of_model(training.model_uid) == []


async def test_the_schema_is_what_the_tables_say(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import Connection
    from training_service.storage.tables import Base

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
