"""Rows of kernel models on every supported database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from inference_service.kernels.domain.models import KernelState
from inference_service.kernels.domain.profiles import KernelPolicy, KernelProfile, KernelSettings
from inference_service.kernels.storage.rows import SqlKernelModels
from inference_service.storage import MIGRATIONS
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.times import utc_now
from test_kernel_domain import make_model


@pytest.fixture
async def models(database_url: str) -> AsyncIterator[SqlKernelModels]:
    database = Database(database_url, "inference")
    await database.migrate(MIGRATIONS)
    yield SqlKernelModels(database)
    await database.close()


async def test_a_model_comes_back_as_it_was(models: SqlKernelModels) -> None:
    profile = KernelProfile(
        policy=KernelPolicy(kernel_max=-1),
        kernel=KernelSettings(environments=(("A", "b"),)),
        environments=(("C", "ä"),),
    )
    model = make_model(attributes=(("t", "0.5"), ("s", "")), environments=(("E", "f"),), profile=profile)
    model.size_bytes = 5_000_000_000
    await models.add(model)
    assert await models.find("pong") == model
    assert await models.find("ping") is None
    assert await models.all() == [model]
    with pytest.raises(ServiceError, match="edimodel 'pong' exists already") as caught:
        await models.add(make_model(uid="u2"))
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_who_comes_second_does_not_overwrite_a_move(models: SqlKernelModels) -> None:
    await models.add(make_model())
    starter, other = await models.find("pong"), await models.find("pong")
    assert starter is not None
    assert other is not None
    assert starter.start()
    assert await models.move(starter, KernelState.STOPPED)
    assert other.start()
    assert not await models.move(other, KernelState.STOPPED)
    # The loop saw it STARTING; a stop came before it said STARTED.
    looped = await models.find("pong")
    assert looped is not None
    assert starter.stop()
    assert await models.move(starter, KernelState.STARTING)
    looped.started()
    assert not await models.move(looped, KernelState.STARTING)
    found = await models.find("pong")
    assert found is not None
    assert found.state is KernelState.STOPPING


async def test_who_changes_what_another_has_changed_is_told_so(models: SqlKernelModels) -> None:
    model = make_model()
    await models.add(model)
    seen = model.updated_at
    first = replace(model, tag="first", updated_at=seen + timedelta(seconds=1))
    second = replace(model, profile=KernelProfile(type="second"), updated_at=seen + timedelta(seconds=2))
    assert await models.change(first, seen)
    assert not await models.change(second, seen)
    assert await models.all() == [first]


async def test_what_runs_is_neither_changed_nor_deleted(models: SqlKernelModels) -> None:
    model = make_model()
    await models.add(model)
    stale = replace(model, tag="new", updated_at=utc_now(), profile=KernelProfile(type="other"))
    assert await models.change(stale, model.updated_at)
    assert (await models.all())[0] == stale
    running = replace(stale)
    running.start()
    assert await models.move(running, KernelState.STOPPED)
    assert not await models.change(replace(stale, tag="newer"), stale.updated_at)
    assert not await models.delete(model.uid)
    # A move writes neither what was changed nor the other way around.
    running.fail("the last words")
    assert await models.move(replace(running, tag="from before"), KernelState.STARTING)
    [found] = await models.all()
    assert (found.tag, found.state, found.status_message) == ("new", KernelState.FAILED, "the last words")
    assert await models.change(replace(found, tag="newest", state=KernelState.STARTED), found.updated_at)
    [found] = await models.all()
    assert (found.tag, found.state) == ("newest", KernelState.FAILED)
    assert await models.delete(model.uid)
    assert not await models.delete(model.uid)
    assert await models.all() == []
