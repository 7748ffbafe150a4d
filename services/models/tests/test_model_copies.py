"""Models from models: what a tuning found made into one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from models_service.domain.model import Model
from models_service.usecases import folders
from models_service.usecases.models import ModelInput
from models_service.usecases.program_config import CONFIG
from models_service.usecases.templates import TemplateInput
from servicekit.errors import Code, ServiceError
from servicekit.identity import Identity, acting_as

from .conftest import Room

FOUND = ModelInput(hyperparameters={"epoch": 3}, batch_size=64)


@pytest.fixture(autouse=True)
def alice() -> Iterator[None]:
    with acting_as(Identity("alice")):
        yield


@pytest.fixture
async def model(room: Room) -> Model:
    room.make_folder()
    await room.templates.create(TemplateInput(name="net", path="program", framework="PyTorch"))
    return await room.models.create(ModelInput(name="m1", template_name="net", batch_size=32))


def config_of(model: Model) -> Path:
    return model.directory / CONFIG


async def test_a_copy_has_the_files_and_the_settings_with_what_was_found(room: Room, model: Model) -> None:
    config_of(model).write_text('{"kept": 1, "width": 2}')
    made = await room.models.copy("m1", "m2", FOUND, '{"width": 8}')
    assert (made.hyperparameters, made.batch_size) == ({"epoch": 3}, 64)
    assert json.loads(config_of(made).read_text()) == {"kept": 1, "width": 8}
    assert (made.directory / "main.py").read_text() == (model.directory / "main.py").read_text()
    assert json.loads(config_of(model).read_text()) == {"kept": 1, "width": 2}
    # One that has no file gets it where there is something to write.
    config_of(model).unlink()
    assert not config_of(await room.models.copy("m1", "m3", FOUND, "")).exists()
    assert json.loads(config_of(await room.models.copy("m1", "m4", FOUND, '{"width": 8}')).read_text()) == {"width": 8}


async def test_the_caller_may_draw_its_uid(room: Room, model: Model) -> None:
    uid = uuid4().hex
    assert (await room.models.copy("m1", "m2", FOUND, "", uid)).uid == uid
    # It is no way to another model's folder.
    for taken in (uid, model.uid):
        with pytest.raises(ServiceError) as caught:
            await room.models.copy("m1", "m3", FOUND, "", taken)
        assert caught.value.code is Code.ALREADY_EXISTS
    for wrong in ("../datasets", "a" * 31, "A" * 32, f"{uid}\n"):
        with pytest.raises(ServiceError, match=r"^uid: .* allowed: 32 hexadecimal digits"):
            await room.models.copy("m1", "m3", FOUND, "", wrong)
    await room.removals.step()
    assert room.folders("models") == sorted([uid, model.uid])


@pytest.mark.parametrize(
    "there",
    [b"[1, 2]", b"{", b"\xff{}", b"{} ".ljust(folders.MAX_TEXT_BYTES + 1), b"[" * 100_000],
    ids=["list", "broken", "bytes", "long", "deep"],
)
async def test_a_config_that_cannot_be_changed_is_left_alone(room: Room, model: Model, there: bytes) -> None:
    config_of(model).write_bytes(there)
    with pytest.raises(ServiceError) as caught:
        await room.models.configure("m1", FOUND, '{"width": 8}')
    assert (caught.value.code, caught.value.metadata["field"]) == (Code.INVALID_ARGUMENT, CONFIG)
    assert config_of(model).read_bytes() == there
    # Nor is anything else changed.
    assert (await room.models.get("m1"))[0] == model
    with pytest.raises(ServiceError) as caught:
        await room.models.copy("m1", "m2", FOUND, '{"width": 8}')
    assert (caught.value.code, caught.value.metadata["field"]) == (Code.INVALID_ARGUMENT, CONFIG)
    await room.removals.step()
    assert room.folders("models") == [model.uid]
    # Settings alone do not touch it.
    await room.models.configure("m1", FOUND, "")
    assert config_of(model).read_bytes() == there


async def test_what_is_refused_changes_no_config(room: Room, model: Model) -> None:
    config_of(model).write_text('{"width": 2}')
    with pytest.raises(ServiceError, match="batchsize"):
        await room.models.configure("m1", ModelInput(batch_size=-1), '{"width": 8}')
    assert json.loads(config_of(model).read_text()) == {"width": 2}
    await room.models.configure("m1", FOUND, '{"width": 8}')
    changed, _ = await room.models.get("m1")
    assert (changed.hyperparameters, changed.batch_size) == ({"epoch": 3}, 64)
    assert json.loads(config_of(model).read_text()) == {"width": 8}
