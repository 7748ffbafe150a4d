"""Trials in every supported database: deletions and starts that meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.times import utc_now
from training_fakes import make_training
from training_service.domain.runs import Status, Training
from training_service.storage import MIGRATIONS
from training_service.storage.removals import SqlRemovals
from training_service.storage.runs import SqlTrainings
from training_service.storage.trials import SqlTrials


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "training")
    await database.migrate(MIGRATIONS)
    yield database
    await database.close()


def make_trial(**changes: object) -> Training:
    uid = uuid4().hex
    return make_training(
        **{"uid": uid, "job_id": uid, "name": f"trial {uid}", "study": "s1", "user_defined": {"k": 1.5}, **changes}
    )


async def test_a_trial_comes_back_as_it_was_and_in_no_list(database: Database) -> None:
    trials, trainings, trial = SqlTrials(database, lambda _: ""), SqlTrainings(database, lambda _: ""), make_trial()
    await trials.add(trial)
    await trainings.add(make_training())
    assert await trials.known(["t" * 32, trial.uid, "0" * 32]) == {trial.uid: trial}
    assert await trainings.find(trial.model_uid, trial.name) is None
    assert [training.name for training in await trainings.of_model(trial.model_uid)] == ["first"]
    assert {training.uid for training in await trainings.belonging_to(trial.model_uid)} == {trial.uid, "t" * 32}
    assert {training.uid for training in await trainings.active()} == {trial.uid, "t" * 32}
    assert await trials.active_of_model(trial.model_uid) == [trial]
    await trainings.save_state(replace(trial, status=Status.FINISHED))
    assert await trials.active_of_model(trial.model_uid) == []
    with pytest.raises(ServiceError) as caught:
        await trials.add(trial)
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_a_deleted_trial_is_out_of_sight_and_removed_when_it_has_ended(database: Database) -> None:
    trials, trial = SqlTrials(database, lambda _: ""), make_trial(status=Status.RUNNING)
    await trials.add(trial)
    await trials.delete([trial.uid], utc_now())
    assert (await trials.known([trial.uid]), await trials.by_uid(trial.uid)) == ({}, None)
    [going] = await trials.active()
    assert (going.uid, going.stop_requested, await trials.deleted()) == (trial.uid, True, [])
    await trials.save_state(replace(going, status=Status.STOPPED))
    assert await trials.deleted() == [trial.uid]
    with pytest.raises(ServiceError, match="was deleted"):
        await trials.add(trial)
    await trials.remove(trial.uid)
    assert await trials.deleted() == []
    # While something is left of it, it is not forgotten.
    removals, later = SqlRemovals(database), utc_now() + timedelta(seconds=1)
    [order] = await removals.pending()
    assert (order.uid, order.name) == (trial.uid, "digits/s1")
    await trials.forget_deleted(later)
    assert await trials.was_deleted(trial.uid)
    await removals.forget(order)
    await trials.forget_deleted(utc_now() - timedelta(days=1))
    assert await trials.was_deleted(trial.uid)
    await trials.forget_deleted(later)
    assert not await trials.was_deleted(trial.uid)


async def test_other_trainings_are_not_deleted_as_trials(database: Database) -> None:
    trials = SqlTrials(database, lambda _: "")
    await SqlTrainings(database, lambda _: "").add(make_training())
    await trials.delete(["t" * 32], utc_now())
    [training] = await trials.active()
    assert not training.stop_requested


async def test_of_a_start_and_a_deletion_at_once_one_wins(database: Database) -> None:
    trials = SqlTrials(database, lambda _: "")

    async def added(trial: Training) -> bool:
        try:
            await trials.add(trial)
        except ServiceError as error:
            return error.reason != "DELETED"
        return True

    for _ in range(20):
        trial = make_trial()
        _, is_added = await asyncio.gather(trials.delete([trial.uid], utc_now()), added(trial))
        # Whoever was first: it cannot be seen, is ended if it is there, and does not come again.
        assert (await trials.known([trial.uid]), await trials.was_deleted(trial.uid)) == ({}, True)
        assert [one.stop_requested for one in await trials.active() if one.uid == trial.uid] == [True] * is_added
        assert not await added(trial)


async def test_many_are_deleted_at_once(database: Database) -> None:
    trials = SqlTrials(database, lambda _: "")
    made = [make_trial(status=Status.FINISHED) for _ in range(3)]
    for trial in made:
        await trials.add(trial)
    uids = [trial.uid for trial in made] + [uuid4().hex for _ in range(1200)]
    await asyncio.gather(trials.delete(uids, utc_now()), trials.delete(uids[::-1], utc_now()))
    assert set(await trials.deleted()) == {trial.uid for trial in made}
    assert await trials.was_deleted(uids[-1])


async def test_weights_that_an_active_trial_begins_from_are_kept(database: Database) -> None:
    trials = SqlTrials(database, lambda path: path.split("/")[2] if path else "")
    first = make_trial(status=Status.FINISHED)
    await trials.add(first)
    await trials.add(make_trial(weights_folder=f"/trainings/{first.uid}/checkpoints"))
    await trials.delete([first.uid], utc_now())
    with pytest.raises(ServiceError, match="in use by a trial of tuning 's1'"):
        await trials.remove(first.uid)
