"""The repositories on every supported database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.times import utc_now
from training_fakes import make_training, make_validation
from training_service.domain.metrics import MetricPoint, ranges_between
from training_service.domain.removals import Removal
from training_service.domain.runs import Status
from training_service.storage import MIGRATIONS
from training_service.storage.metrics import SqlMetrics
from training_service.storage.removals import SqlRemovals
from training_service.storage.runs import SqlTrainings, SqlValidations
from training_service.usecases.ports import RunModel


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "training")
    await database.migrate(MIGRATIONS)
    yield database
    await database.close()


def training_of(path: str) -> str:
    """Of the trainings below /trainings."""
    return path.split("/")[2] if path.startswith("/trainings/") else ""


async def test_a_training_comes_back_as_it_was(database: Database) -> None:
    trainings = SqlTrainings(database, training_of)
    training = make_training(initial_weights="/w.pth", gpu_percentage=50)
    await trainings.add(training)
    assert await trainings.find(training.model_uid, "first") == training
    assert await trainings.find("another model", "first") is None
    assert await trainings.models() == [RunModel(training.model_uid, training.model_name)]
    with pytest.raises(ServiceError) as caught:
        await trainings.add(make_training(uid="other", job_id="other"))
    assert caught.value.code is Code.ALREADY_EXISTS
    await trainings.add(make_training(uid="other", job_id="other", model_uid="another model"))


async def test_since_when_a_model_is_gone_is_kept(database: Database) -> None:
    trainings = SqlTrainings(database, training_of)
    await trainings.add(make_training())
    await trainings.add(make_training(uid="other", job_id="other", model_uid="model-2", model_name="letters"))
    since = utc_now()
    await trainings.set_orphaned("model-1", since)
    models = {model.uid: model for model in await trainings.models()}
    assert models == {"model-1": RunModel("model-1", "digits", since), "model-2": RunModel("model-2", "letters")}
    await trainings.set_orphaned("model-1", None)
    assert RunModel("model-1", "digits") in await trainings.models()


async def test_the_loop_and_a_stop_do_not_overwrite_each_other(database: Database) -> None:
    trainings = SqlTrainings(database, training_of)
    await trainings.add(make_training())
    [seen_by_loop] = await trainings.active()
    await trainings.request_stop(seen_by_loop.uid)
    seen_by_loop.status, seen_by_loop.progress = Status.RUNNING, 40
    await trainings.save_state(seen_by_loop)
    [both] = await trainings.active()
    assert (both.stop_requested, both.status, both.progress) == (True, Status.RUNNING, 40)
    both.status = Status.FINISHED
    await trainings.save_state(both)
    # Another process of the service, which has not heard of the end.
    await trainings.save_state(seen_by_loop)
    found = await trainings.find(both.model_uid, both.name)
    assert found is not None
    assert found.status is Status.FINISHED


async def test_validations_keep_their_pairs_and_leave_the_active_ones_when_they_end(database: Database) -> None:
    validations = SqlValidations(database)
    await SqlTrainings(database, training_of).add(make_training())
    validation = make_validation(metrics=["Top1", "Top5"], threshold=0.25)
    await validations.add(validation)
    validation.status, validation.pairs = Status.FINISHED, [("Top1", "0.9"), ("Top5", "1")]
    await validations.save_state(validation)
    assert await validations.find(validation.model_uid, "check") == validation
    assert await validations.active() == []


async def test_what_is_active_or_used_is_not_removed(database: Database) -> None:
    trainings, validations = SqlTrainings(database, training_of), SqlValidations(database)
    used, validation = make_training(), make_validation()
    begun = make_training(uid="b" * 32, job_id="b", name="begun", weights_folder=f"/trainings/{used.uid}/checkpoints")
    await trainings.add(used)
    with pytest.raises(ServiceError, match=r"first.*is SUBMITTED; stop it first") as caught:
        await trainings.remove(used.uid)
    assert caught.value.code is Code.ABORTED
    await trainings.request_stop(used.uid)
    with pytest.raises(ServiceError, match=r"first.*is being stopped; try again in a moment$") as caught:
        await trainings.remove(used.uid)
    assert caught.value.code is Code.ABORTED
    await trainings.save_state(replace(used, status=Status.FINISHED))
    await validations.add(validation)
    await trainings.add(begun)
    with pytest.raises(ServiceError, match="in use by validation 'check'"):
        await trainings.remove(used.uid)
    await validations.save_state(replace(validation, status=Status.STOPPED))
    with pytest.raises(ServiceError, match="in use by training 'begun'"):
        await trainings.remove(used.uid)
    await trainings.save_state(replace(begun, status=Status.FAILED))
    assert await SqlRemovals(database).pending() == []
    await trainings.remove(used.uid)
    assert await SqlRemovals(database).pending() == [Removal(used.uid, "training", "digits/first", used.job_id)]
    with pytest.raises(ServiceError) as caught:
        await trainings.remove(used.uid)
    assert caught.value.code is Code.NOT_FOUND
    # Nothing begins from it any more, and its name is free.
    with pytest.raises(ServiceError, match=r"trainName.*just deleted"):
        await validations.add(make_validation(uid="w", job_id="w", name="late"))
    with pytest.raises(ServiceError, match=r"wtfolder.*just deleted"):
        await trainings.add(replace(begun, uid="c" * 32, job_id="c", name="late"))
    await trainings.add(make_training(uid="d" * 32, job_id="d"))


async def test_of_a_removal_and_a_use_at_once_one_is_refused(database: Database) -> None:
    trainings, validations = SqlTrainings(database, training_of), SqlValidations(database)
    for number in range(10):
        name = f"{number:032}"
        await trainings.add(make_training(uid=name, job_id=name, name=name, status=Status.FINISHED))
        validation = make_validation(uid=name, job_id=name, name=name, training_uid=name)
        removed, added = await asyncio.gather(
            trainings.remove(name), validations.add(validation), return_exceptions=True
        )
        assert (removed is None) != (added is None), (removed, added)
        assert await validations.of_model(validation.model_uid) == ([] if removed is None else [validation])
        if added is None:
            await validations.save_state(replace(validation, status=Status.FAILED))
            await validations.remove(validation.uid)


async def test_metrics_are_idempotent_and_go_with_their_training(database: Database) -> None:
    trainings, metrics = SqlTrainings(database, training_of), SqlMetrics(database)
    training = make_training()
    await trainings.add(training)

    def points(attempt: int, steps: range, value: float) -> list[MetricPoint]:
        return [MetricPoint(training.job_id, attempt, "train_loss", step, value, 1.0) for step in steps]

    assert await metrics.add([]) == 0
    assert await metrics.add(points(1, range(2500), 0.5)) == 2500
    assert await metrics.add(points(1, range(2400, 2600), 0.7)) == 100
    assert await metrics.add([*points(1, range(1), 9.0), *points(1, range(1), 9.0)]) == 0
    # Restarted from a checkpoint at step 2500: what came after it is discarded.
    await metrics.add(points(2, range(2500, 2502), 0.1))
    curve = await metrics.page(training.job_id, "train_loss", 0, 5000)
    assert [point.step for point in curve] == list(range(2502))
    assert [curve[step].value for step in (0, 2499, 2500, 2501)] == [0.5, 0.5, 0.1, 0.1]
    assert await metrics.page(training.job_id, "train_loss", 2498, 3) == curve[2498:2501]
    assert await metrics.page(training.job_id, "train_loss", 2600, 3) == []
    assert await metrics.page(training.job_id, "test_loss", 0, 3) == []
    assert await metrics.last(training.job_id, "test_loss") is None
    assert await metrics.last(training.job_id, "train_loss") == curve[-1]
    assert await metrics.series("another job") == []
    await metrics.add([MetricPoint(training.job_id, 1, name, 1, 1.0) for name in ("lr", "é", "test_loss")])
    assert sorted(await metrics.series(training.job_id)) == ["lr", "test_loss", "train_loss", "é"]
    training.status = Status.FINISHED
    await trainings.save_state(training)
    await trainings.remove(training.uid)
    removals = SqlRemovals(database)
    for removal in await removals.pending():
        await removals.forget(removal)
    assert await metrics.series(training.job_id) == []
    assert await metrics.page(training.job_id, "train_loss", 0, 3) == []
    # Nothing is left of its attempts.
    await metrics.add(points(1, range(2600, 2601), 0.5))
    assert len(await metrics.page(training.job_id, "train_loss", 0, 3)) == 1
    assert await trainings.of_model(training.model_uid) == []


async def test_extremes_are_those_of_the_newest_attempt(database: Database) -> None:
    metrics = SqlMetrics(database)

    def points(attempt: int, values: dict[int, float], series: str = "loss") -> list[MetricPoint]:
        return [MetricPoint("j", attempt, series, step, value, 1.0) for step, value in values.items()]

    values = {step: float(step % 7) for step in range(0, 90, 3)}
    values |= {33: 900.0, 36: -900.0}
    await metrics.add([*points(1, values), *points(1, {33: 5000.0}, "other")])
    ranges = range(1, 88, 29)
    found = await metrics.extremes("j", "loss", ranges)
    # Of the ranges from 1, 30 and 59 on both ends, and the first of several; 21 and 63 are of the value 0.
    ends = [(6, 6.0), (21, 0.0), (33, 900.0), (36, -900.0), (63, 0.0), (69, 6.0)]
    assert [(point.step, point.value) for point in found] == ends
    # What later attempts did instead is what counts, and nothing beyond.
    await metrics.add([*points(2, {35: 3.0, 36: 4.0, 40: 800.0}), *points(3, {39: 1.0})])
    found = await metrics.extremes("j", "loss", ranges)
    later = [(point.step, point.value, point.attempt) for point in found if point.step >= 30]
    assert later == [(33, 900.0, 1), (39, 1.0, 3)]
    # Ranges without points have none, and steps may be as high as they can.
    high = 2**31 - 1
    far = {0: 1.0, 5: 2.0, high - 1: 3.0, high: 4.0}
    await metrics.add([MetricPoint("k", 1, "far", step, value) for step, value in far.items()])
    found = await metrics.extremes("k", "far", range(1, high, high // 3))
    assert [point.step for point in found] == [5, high - 1]
    assert await metrics.extremes("j", "none", ranges) == []


async def test_curves_go_on_where_the_next_attempt_began(database: Database) -> None:
    """Attempts report about once a second, so their steps are seldom the same."""
    metrics = SqlMetrics(database)

    async def curve(series: str = "loss") -> list[tuple[int, int]]:
        found = await metrics.page("j", series, 0, 100)
        last = await metrics.last("j", series)
        assert last == (found[-1] if found else None)
        for count in range(1, len(found)):
            assert await metrics.page("j", series, 0, count) == found[:count]
            assert await metrics.page("j", series, found[count].step, 100) == found[count:]
        inner = await metrics.extremes("j", series, range(0, 1000, 1))
        assert inner == found
        return [(point.step, point.attempt) for point in found]

    async def add(attempt: int, *steps: int, series: str = "loss") -> None:
        await metrics.add([MetricPoint("j", attempt, series, step, float(step)) for step in steps])

    await add(1, 151, 157, 162, 170)
    await add(1, 100, 200, series="test_loss")
    assert await curve() == [(151, 1), (157, 1), (162, 1), (170, 1)]
    await add(2, 161, 168)
    assert await curve() == [(151, 1), (157, 1), (161, 2), (168, 2)]
    # Every series of the job goes back, also those of which the new attempt has no point yet.
    assert await curve("test_loss") == [(100, 1)]
    # The third began before the second; what is delivered late or twice changes nothing.
    await add(3, 159, series="test_loss")
    await add(2, 169)
    await add(1, 157, 171)
    assert await curve() == [(151, 1), (157, 1)]
    assert await curve("test_loss") == [(100, 1), (159, 3)]
    # It began even earlier, as it turns out.
    await add(3, 152, 160)
    assert await curve() == [(151, 1), (152, 3), (160, 3)]
    # A graceful end: the next one goes on behind it.
    await add(4, 161, 165)
    assert await curve() == [(151, 1), (152, 3), (160, 3), (161, 4), (165, 4)]
    # From the beginning.
    await add(5, 1)
    assert await curve() == [(1, 5)]
    assert await curve("test_loss") == []
    await metrics.add([MetricPoint("other", 1, "loss", 500, 0.5)])
    assert await curve() == [(1, 5)]


async def test_attempts_of_points_from_before_are_found(database_url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import Connection

    database = Database(database_url, "training")

    def before(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "20261125T1530")
        rows = "('j', 'loss', 5, 1, 0.5, 0), ('j', 'loss', 7, 1, 0.5, 0), ('j', 'other', 6, 2, 0.5, 0)"
        connection.exec_driver_sql(f"INSERT INTO metrics (job_id, series, step, attempt, value, time) VALUES {rows}")

    async with database.engine.begin() as connection:
        if database.url.get_backend_name() == "postgresql":
            await connection.exec_driver_sql("CREATE SCHEMA training")
        await connection.run_sync(before)
    await database.migrate(MIGRATIONS)
    assert [point.step for point in await SqlMetrics(database).page("j", "loss", 0, 9)] == [5]
    await database.close()


async def test_a_thinned_curve_has_at_most_so_many_points_and_every_spike(database: Database) -> None:
    metrics = SqlMetrics(database)
    values = {step: 1.0 / (step + 1) for step in range(20_000)} | {12_345: 50.0}
    await metrics.add([MetricPoint("j", 1, "loss", step, value) for step, value in values.items()])
    for most in (4, 5, 100, 9999):
        found = await metrics.extremes("j", "loss", ranges_between(0, 19_999, most))
        steps = [point.step for point in found]
        assert len(steps) + 2 <= most
        assert steps == sorted(set(steps))
        assert (0 in steps, 19_999 in steps, 12_345 in steps) == (False, False, True)


async def test_the_schema_is_what_the_tables_say(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import Connection
    from training_service.storage.tables import Base

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
