"""Templates, models and files: what is accepted, refused, kept apart and cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import models_service
import pytest
from models_service.api.mapping import model_detail
from models_service.domain.model import Model
from models_service.usecases import folders, models, removals
from models_service.usecases.folders import ProgramTexts
from models_service.usecases.models import ModelInput
from models_service.usecases.templates import TemplateInput
from servicekit.errors import Code, ServiceError
from servicekit.folders import remove_folder
from servicekit.identity import Identity, acting_as
from servicekit.reconcile import Next
from servicekit.times import utc_now

from .conftest import Room

ALICE, BOB = Identity("alice"), Identity("bob")
ADMIN = Identity("Admin", is_admin=True)


async def refused(call: Any, code: Code, *words: str) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    assert caught.value.code is code, caught.value.message
    for word in words:
        assert word in caught.value.message
    return caught.value


async def make_template(room: Room, name: str = "net", **more: Any) -> None:
    room.make_folder()
    await room.templates.create(TemplateInput(name=name, path="program", framework="PyTorch", **more))


async def make_model(room: Room, name: str = "m1", **more: Any) -> Model:
    if await room.catalog.find_template("net") is None:
        await make_template(room)
    return await room.models.create(ModelInput(name=name, template_name="net", **more))


async def test_a_template_is_a_copy_of_a_server_folder(room: Room) -> None:
    with acting_as(ALICE):
        folder = room.make_folder()
        await room.templates.create(TemplateInput(name="net", path=str(folder), framework="pytorch", description="d"))
        (folder / "main.py").write_text("changed")
        template, files = await room.templates.get("net")
        assert (template.framework, template.owner, template.path) == ("PyTorch", "alice", folder)
        assert files.main == "print('train')\n"
        assert files.main_path == f"{folder}/main.py"
        assert await room.templates.list_files("net") == ["net/main.py", "net/net/layers.py"]
        assert await room.templates.read_file("net/net/layers.py") == "layers = 2\n"
        assert [t.name for t, _ in await room.templates.list_visible("PYTORCH")] == ["net"]
        assert await room.templates.list_visible("Caffe") == []
        await refused(room.templates.list_visible("mxnet"), Code.INVALID_ARGUMENT, "framework", "Caffe")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "files"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"framework": "mxnet"}, "framework"),
        ({"framework": ""}, "framework"),
        ({"path": ""}, "path"),
        ({"path": "missing"}, "path"),
        ({"path": "../.."}, "path"),
        ({"path": "/etc"}, "path"),
        ({"path": "program/main.py"}, "path"),
        ({"path": "program/net"}, "path"),
        ({"path": "linked"}, "path"),
        ({"path": "escaping"}, "path"),
        ({"framework": "Caffe"}, "path"),
    ],
)
async def test_bad_templates_are_refused_by_field(room: Room, changes: dict[str, str], field: str) -> None:
    room.make_folder()
    linked = room.make_folder("linked")
    (linked / "passwd").symlink_to("/etc/passwd")
    (room.data / "escaping").symlink_to("/etc")
    given = replace(TemplateInput(name="net", path="program", framework="PyTorch"), **changes)
    with acting_as(ALICE):
        error = await refused(room.templates.create(given), Code.INVALID_ARGUMENT)
        assert error.metadata["field"] == field
        assert await room.templates.list_visible() == []
    assert room.folders("templates") == []


async def test_template_updates(room: Room) -> None:
    with acting_as(ALICE):
        await make_template(room)
        await room.templates.update(
            "net", TemplateInput(description="new", hyperparameters={"epoch": 4}, texts=ProgramTexts(main="pass\n"))
        )
        template, files = await room.templates.get("net")
        assert (template.description, template.hyperparameters, files.main) == ("new", {"epoch": 4}, "pass\n")
        old = template.directory
        room.make_folder("second")
        await room.templates.update("net", TemplateInput(name="net", path="second"))
        template, files = await room.templates.get("net")
        assert template.path == room.data / "second"
        assert files.main == "print('train')\n"
        assert await room.removals.step() is Next.AT_ONCE
        assert not old.exists()
        assert template.directory.exists()
        await refused(room.templates.update("net", TemplateInput(name="x")), Code.INVALID_ARGUMENT, "name")
        to_caffe = room.templates.update("net", TemplateInput(framework="Caffe"))
        await refused(
            to_caffe, Code.INVALID_ARGUMENT, "framework: 'Caffe' ", "solver.prototxt", "this one holds main.py"
        )
        await refused(room.templates.update("none", TemplateInput()), Code.NOT_FOUND)
        await refused(room.templates.update("net", TemplateInput(path="none")), Code.INVALID_ARGUMENT, "path")


async def test_users_see_and_change_only_their_own(room: Room) -> None:
    with acting_as(ALICE):
        await make_model(room)
    with acting_as(BOB):
        assert await room.templates.list_visible() == []
        assert await room.models.list_visible() == []
        for call in (
            room.templates.get("net"),
            room.templates.delete("net"),
            room.templates.update("net", TemplateInput()),
            room.templates.list_files("net"),
            room.templates.read_file("net/main.py"),
            room.models.create(ModelInput(name="mine", template_name="net")),
            room.models.get("m1"),
            room.models.update("m1", ModelInput(description="x")),
            room.models.delete("m1"),
            room.models.list_files("m1"),
            room.models.read_file("m1/main.py"),
            room.models.save_file("m1", ModelInput(file_path="a", file_text="b")),
        ):
            await refused(call, Code.PERMISSION_DENIED)
        await refused(
            room.templates.create(TemplateInput(name="net", path="program", framework="PyTorch")), Code.ALREADY_EXISTS
        )
    with acting_as(ADMIN):
        assert len(await room.templates.list_visible()) == 1
        await room.models.delete("m1")
        await room.templates.delete("net")


async def test_built_in_templates_are_registered_once_and_stay(room: Room, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    (shipped / "small").mkdir(parents=True)
    (shipped / "small" / "main.py").write_text("x = 1\n")
    manifest = {
        "name": "small",
        "framework": "PyTorch",
        "description": "first",
        "hyperparameter": {"epoch": 2, "learningrate": 0.1},
        "batchsize": 64,
    }
    (shipped / "small" / "template.json").write_text(json.dumps(manifest))
    await asyncio.gather(*(room.templates.register_built_in(shipped) for _ in range(3)))
    first = await room.catalog.find_template("small")
    assert first is not None
    assert (first.owner, first.built_in) == ("system", True)
    (shipped / "small" / "template.json").write_text(json.dumps({**manifest, "description": "second"}))
    await room.templates.register_built_in(shipped)
    second = await room.catalog.find_template("small")
    assert second == replace(first, description="second")
    with acting_as(BOB):
        assert [t.name for t, _ in await room.templates.list_visible()] == ["small"]
        assert await room.templates.list_files("small") == ["small/main.py"]
        model = await room.models.create(ModelInput(name="m", template_name="small", hyperparameters={"epoch": 9}))
        assert model.hyperparameters == {"epoch": 9, "learningrate": 0.1}
        assert model.batch_size == 64
        assert [path.name for path in model.directory.iterdir()] == ["main.py"]
    for who in (BOB, ADMIN):
        with acting_as(who):
            await refused(room.templates.delete("small"), Code.PERMISSION_DENIED, "built in")
            await refused(room.templates.update("small", TemplateInput(description="x")), Code.PERMISSION_DENIED)


async def test_the_shipped_templates_register(room: Room) -> None:
    await room.templates.register_built_in(Path(models_service.__file__).parent / "builtin")
    found = {template.name: template for template in await room.catalog.list_templates()}
    assert {name: template.framework for name, template in found.items()} == {
        "caffe-cifar": "Caffe",
        "caffe-lenet": "Caffe",
        "pytorch-image-classification": "PyTorch",
        "pytorch-image-comparison": "PyTorch",
        "pytorch-image-to-vector": "PyTorch",
        "pytorch-object-detection": "PyTorch",
        "pytorch-resnet-image-classification": "PyTorch",
        "pytorch-tabular": "PyTorch",
        "pytorch-text-classification": "PyTorch",
        "tensorflow-image-classification": "TensorFlow",
    }
    assert all(template.description and template.batch_size for template in found.values())


async def test_a_model_keeps_its_own_files_and_settings(room: Room) -> None:
    with acting_as(ALICE):
        model = await make_model(
            room,
            description="digits",
            accelerator="elastic",
            type="training",
            hyperparameters={"learningrate": 0.01, "solvertype": "adam (Cf, TF and PT)", "epoch": 2},
            dataset="digits",
            batch_size=16,
            instance_group_id="local",
            texts=ProgramTexts(main="print('mine')\n"),
        )
        UUID(model.uid)
        found, files = await room.models.get("m1")
        assert found == model
        assert (found.accelerator, found.type, found.batch_size) == ("Elastic", "Training", 16)
        assert found.hyperparameters == {"learningrate": 0.01, "solvertype": "Adam", "epoch": 2}
        assert (found.instance_group_id, found.instance_group_name) == ("1d", "local")
        assert found.directory == room.home / "models" / model.uid
        assert files.main == "print('mine')\n"
        assert await room.templates.read_file("net/main.py") == "print('train')\n"
        assert [m.name for m, _ in await room.models.list_visible()] == ["m1"]
        assert await room.models.list_files("m1") == ["m1/main.py", "m1/net/layers.py"]
        await refused(make_model(room), Code.ALREADY_EXISTS, "m1")
        await refused(room.templates.delete("net"), Code.ABORTED, "m1")
        assert await room.removals.step() is Next.LATER


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "files"}, "name"),
        ({"name": "weightfile"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "../x"}, "name"),
        ({"template_name": ""}, "templatename"),
        ({"template_name": "none"}, "templatename"),
        ({"accelerator": "Turbo"}, "accelerator"),
        ({"description": "a\0b"}, "description"),
        ({"description": "x" * 10_001}, "description"),
        ({"dataset": "a/b"}, "dataset"),
        ({"type": "Both"}, "type"),
        ({"batch_size": 0}, "batchsize"),
        ({"batch_size": -4}, "batchsize"),
        ({"dataset": "none"}, "dataset"),
        ({"instance_group_id": "none"}, "sig"),
        ({"instance_group_name": "none"}, "signame"),
        ({"hyperparameters": {"learningrate": 0}}, "hyperparameter.learningrate"),
        ({"hyperparameters": {"epoch": 0}}, "hyperparameter.epoch"),
        ({"hyperparameters": {"lrpolicy": "step"}}, "hyperparameter.stepsize"),
        (
            {"hyperparameters": {"lrpolicy": "reducelronplateau"}, "accelerator": "elastic"},
            "hyperparameter.lrpolicy",
        ),
        ({"framework": "Caffe"}, "framework"),
        ({"framework": "edtTensorFlow"}, "framework"),
        ({"framework": "mxnet"}, "framework"),
        ({"weights_folder": "/etc"}, "wtfolder"),
        ({"weights_folder": "../../x"}, "wtfolder"),
        ({"initial_weights": "none.pth"}, "wfinit"),
    ],
)
async def test_bad_models_are_refused_by_field(room: Room, changes: dict[str, Any], field: str) -> None:
    with acting_as(ALICE):
        await make_template(room)
        given = replace(ModelInput(name="m1", template_name="net"), **changes)
        error = await refused(room.models.create(given), Code.INVALID_ARGUMENT, field)
        assert error.metadata["field"] == field
        assert await room.models.list_visible() == []
    assert room.folders("models") == []


async def test_a_dataset_of_another_user_is_refused(room: Room) -> None:
    room.peers.foreign_datasets.add("bobs")
    with acting_as(ALICE):
        await refused(make_model(room, dataset="bobs"), Code.PERMISSION_DENIED)


async def test_model_updates(room: Room) -> None:
    with acting_as(ALICE):
        model = await make_model(room, hyperparameters={"epoch": 2, "momentum": 0.5}, instance_group_id="local")
        await room.models.update(
            "m1",
            ModelInput(
                name="m1",
                template_name="net",
                framework="PyTorch",
                instance_group_id="1d",
                instance_group_name="local",
                description="new",
                dataset="digits",
                hyperparameters={"epoch": 3},
                texts=ProgramTexts(main="pass\n"),
            ),
        )
        found, files = await room.models.get("m1")
        assert found == replace(
            model, description="new", dataset="digits", hyperparameters={"epoch": 3, "momentum": 0.5}
        )
        assert files.main == "pass\n"
        for given, field in (
            (ModelInput(name="m2"), "name"),
            (ModelInput(template_name="other"), "templatename"),
            (ModelInput(framework="Caffe"), "framework"),
            (ModelInput(dataset="none"), "dataset"),
            (ModelInput(batch_size=0), "batchsize"),
            (ModelInput(instance_group_name="none"), "signame"),
        ):
            await refused(room.models.update("m1", given), Code.INVALID_ARGUMENT, field)
        await refused(room.models.update("none", ModelInput()), Code.NOT_FOUND)


async def test_an_update_keeps_hyperparameters_complete(room: Room) -> None:
    with acting_as(ALICE):
        await make_model(room)
        await refused(
            room.models.update("m1", ModelInput(hyperparameters={"nesterov": True})),
            Code.INVALID_ARGUMENT,
            "hyperparameter.momentum",
        )
        await room.models.update("m1", ModelInput(hyperparameters={"nesterov": True, "momentum": 0.9}))


async def test_an_elastic_model_gets_no_plateau(room: Room) -> None:
    plateau = {"lrpolicy": "reducelronplateau"}
    with acting_as(ALICE):
        await make_model(room, hyperparameters=plateau)
        call = room.models.update("m1", ModelInput(accelerator="Elastic"))
        await refused(call, Code.INVALID_ARGUMENT, "hyperparameter.lrpolicy", "cosineannealing")
        await room.models.update("m1", ModelInput(accelerator="Elastic", hyperparameters={"lrpolicy": "fixed"}))
        call = room.models.update("m1", ModelInput(hyperparameters=plateau))
        await refused(call, Code.INVALID_ARGUMENT, "hyperparameter.lrpolicy")


async def test_what_a_caffe_policy_needs_is_looked_for_in_the_files(room: Room) -> None:
    folder = room.data / "net"
    folder.mkdir()
    (folder / "my_solver.prototxt").write_text('lr_policy: "inv" gamma: 0.1 power: 1 max_iter: 5')
    (folder / "my_train_test.prototxt").touch()
    with acting_as(ALICE):
        await room.templates.create(TemplateInput(name="caffe", path="net", framework="Caffe"))
        given = ModelInput(name="m1", template_name="caffe", hyperparameters={"lrpolicy": "sigmoid"})
        await refused(room.models.create(given), Code.INVALID_ARGUMENT, "hyperparameter.stepsize", "solver.prototxt")
        # The text that comes with the request becomes the file.
        await room.models.create(replace(given, texts=ProgramTexts(solver="max_iter: 5 stepsize: 9 gamma: -0.3")))
        without = ModelInput(texts=ProgramTexts(solver="max_iter: 5 stepsize: 9"))
        await refused(room.models.update("m1", without), Code.INVALID_ARGUMENT, "hyperparameter.gamma")
        await room.models.update("m1", ModelInput(hyperparameters={"gamma": 0.5}))
        await room.models.update("m1", without)
        # As long as it is said somewhere.
        await room.models.update("m1", ModelInput(description="still complete"))


async def test_a_solver_is_read_in_bounds_and_beside_other_requests(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = []
    read = models.solver_fields

    def watched(text: str, field: str = "solverContent") -> dict[str, str]:
        readers.append(threading.current_thread())
        return read(text, field)

    folder = room.data / "net"
    folder.mkdir()
    (folder / "solver.prototxt").write_text("max_iter: 5")
    (folder / "train_test.prototxt").touch()
    monkeypatch.setattr(models, "solver_fields", watched)
    monkeypatch.setattr(folders, "MAX_TEXT_BYTES", 100)
    given = ModelInput(name="m1", template_name="caffe")
    open_text = replace(given, texts=ProgramTexts(solver='max_iter: 5 type: "SGD'))
    too_long = replace(given, texts=ProgramTexts(solver='"' + "ä" * 50))
    with acting_as(ALICE):
        await room.templates.create(TemplateInput(name="caffe", path="net", framework="Caffe"))
        await refused(room.models.create(open_text), Code.INVALID_ARGUMENT, "solverContent: ", "in quotes")
        assert await room.models.list_visible() == []
        await room.models.create(given)
        assert len(readers) == 2
        # A file that is saved is read as well; nothing of what is refused is written.
        open_file = ModelInput(file_path="solver.prototxt", file_text='net: "abc\n', texts=ProgramTexts(main="x"))
        await refused(room.models.save_file("m1", open_file), Code.INVALID_ARGUMENT, "tmpfileContent: ", "in quotes")
        endless = ModelInput(texts=ProgramTexts(solver="max_iter: 0"))
        await refused(room.models.save_file("m1", endless), Code.INVALID_ARGUMENT, "maxiteration")
        assert await room.models.read_file("m1/solver.prototxt") == "max_iter: 5"
        await room.models.save_file("m1", ModelInput(file_path="other.prototxt", file_text='net: "abc\n'))
        readers[2:] = []
        for call in (room.models.create(replace(too_long, name="m2")), room.models.update("m1", too_long)):
            await refused(call, Code.INVALID_ARGUMENT, "solverContent: '101 bytes'", "at most 100 bytes")
    assert len(readers) == 2
    assert threading.main_thread() not in readers


async def test_a_caffe_model_says_how_long_its_training_takes(room: Room) -> None:
    folder = room.data / "net"
    folder.mkdir()
    (folder / "my_solver.prototxt").write_text("base_lr: 0.1")
    (folder / "my_train_test.prototxt").touch()
    given = ModelInput(name="m1", template_name="caffe")
    with acting_as(ALICE):
        await room.templates.create(TemplateInput(name="caffe", path="net", framework="Caffe"))
        await refused(room.models.create(given), Code.INVALID_ARGUMENT, "hyperparameter.maxiteration: ''", "max_iter")
        assert await room.models.list_visible() == []
        await room.models.create(replace(given, hyperparameters={"maxiteration": 5}))
        await room.models.create(replace(given, name="m2", texts=ProgramTexts(solver="max_iter: 5")))
        # What is not trained needs no length until it is to be trained.
        await room.models.create(replace(given, name="m3", type="Inference"))
        call = room.models.update("m3", ModelInput(type="Training"))
        await refused(call, Code.INVALID_ARGUMENT, "hyperparameter.maxiteration")
        call = room.models.update("m2", ModelInput(texts=ProgramTexts(solver="max_iter: 0")))
        await refused(call, Code.INVALID_ARGUMENT, "hyperparameter.maxiteration: '0'")


async def test_a_solver_says_nothing_of_other_frameworks(room: Room) -> None:
    with acting_as(ALICE):
        call = make_model(room, hyperparameters={"lrpolicy": "step"}, texts=ProgramTexts(solver="stepsize: 3"))
        await refused(call, Code.INVALID_ARGUMENT, "hyperparameter.stepsize")


@pytest.mark.parametrize("word", ["PyTorch", "pytorch", "edtPyTorch", "PyTorch (PT)", ""])
async def test_a_model_may_name_the_framework_of_its_template(room: Room, word: str) -> None:
    with acting_as(ALICE):
        assert (await make_model(room, framework=word)).framework == "PyTorch"


async def test_a_distribute_strategy_is_one_of_tensorflows(room: Room) -> None:
    room.make_folder()
    given = ModelInput(name="m1", template_name="keras", distribute_strategy="parameterserverstrategy")
    with acting_as(ALICE):
        await room.templates.create(TemplateInput(name="keras", path="program", framework="TensorFlow"))
        assert (await room.models.create(given)).distribute_strategy == "ParameterServerStrategy"
        await room.models.update("m1", ModelInput(distribute_strategy=""))
        call = room.models.update("m1", ModelInput(distribute_strategy="x"))
        await refused(call, Code.INVALID_ARGUMENT, "distributeStrategy: 'x'", "MultiWorkerMirroredStrategy, Parameter")


async def test_concurrent_updates_lose_nothing(room: Room) -> None:
    with acting_as(ALICE):
        await make_model(room)
        await room.models.update("m1", ModelInput(hyperparameters=dict.fromkeys(("epoch", "momentum"), 1)))
        names = ["epoch", "maxiteration", "momentum", "weightdecay", "learningrate", "dampening"]
        await asyncio.gather(*(room.models.update("m1", ModelInput(hyperparameters={n: 5})) for n in names))
        model, _ = await room.models.get("m1")
    assert model.hyperparameters == dict.fromkeys(names, 5)


async def test_a_model_in_use_is_kept_and_a_deleted_one_leaves_nothing(room: Room) -> None:
    with acting_as(ALICE):
        model = await make_model(room, dataset="digits")
        room.peers.running["m1"] = "training 't1'"
        await refused(room.models.delete("m1"), Code.ABORTED, "t1")
        # Without the name the dataset could be deleted under the training.
        await refused(room.models.update("m1", ModelInput(dataset="")), Code.ABORTED, "t1")
        await room.models.update("m1", ModelInput(dataset=model.dataset, batch_size=7))
        room.peers.running.clear()
        await room.models.delete("m1")
        await refused(room.models.get("m1"), Code.NOT_FOUND)
        await refused(room.models.get("m1\0"), Code.NOT_FOUND)
        await refused(room.models.delete("m1"), Code.NOT_FOUND)
        again = await make_model(room)
        assert again.uid != model.uid
        assert await room.removals.step() is Next.AT_ONCE
        assert room.folders("models") == [again.uid]
        assert await room.removals.step() is Next.LATER


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "net/../../x",
        "",
        ".",
        "net",
        "main.py/x",
        "a\0b",
        "x" * 300,
        "a/" * 3_000 + "x",
        "out/x",
        "a\nb",
        "new/",
        "\x7f",
    ],
)
async def test_files_cannot_be_written_outside_the_model(room: Room, path: str) -> None:
    with acting_as(ALICE):
        model = await make_model(room)
        (model.directory / "out").symlink_to(room.home)
        before = sorted(str(file) for file in room.home.rglob("*") if "db" not in str(file))
        given = ModelInput(file_path=path, file_text="evil")
        await refused(room.models.save_file("m1", given), Code.INVALID_ARGUMENT, "tmpfilePath")
        assert before == sorted(str(file) for file in room.home.rglob("*") if "db" not in str(file))


async def test_folders_lie_at_most_so_deep_in_each_other(room: Room) -> None:
    folder = room.make_folder()
    (folder / ("a/" * 100)).mkdir(parents=True)
    (folder / ("a/" * 100) / "last.py").touch()
    with acting_as(ALICE):
        model = await make_model(room)
        given = ModelInput(file_path="a/" * 100 + "other.py", file_text="x")
        await room.models.save_file("m1", given)
        assert len(await room.models.list_files("m1")) == 4
        deeper = replace(given, file_path="a/" * 101 + "other.py")
        await refused(room.models.save_file("m1", deeper), Code.INVALID_ARGUMENT, "tmpfilePath", "at most 100 folders")
        assert len(list((model.directory / ("a/" * 100)).iterdir())) == 2
        deepen(folder, 1500)
        call = room.templates.create(TemplateInput(name="deep", path="program", framework="PyTorch"))
        await refused(call, Code.INVALID_ARGUMENT, "path", "at most 100 folders")
        remove_folder(folder)


async def test_what_cannot_be_removed_stops_no_other_removal(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(directory: Path) -> None:
        if directory == first.directory:
            raise RecursionError
        remove_folder(directory)

    with acting_as(ALICE):
        first, second = await make_model(room), await make_model(room, "m2")
        for name in ("m1", "m2"):
            await room.models.delete(name)
    monkeypatch.setattr(removals, "remove_folder", remove)
    assert await room.removals.step() is Next.AT_ONCE
    assert not second.directory.exists()
    assert list(await room.catalog.due_removals(utc_now())) == [first.directory]


def deepen(folder: Path, levels: int) -> None:
    """Put folders within each other below `folder`; Path.mkdir is not made for so many."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        with contextlib.suppress(FileExistsError):
            os.mkdir("a", dir_fd=descriptor)
        inner = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


@pytest.mark.parametrize("path", ["m1/new/sub.py", "new/sub.py", "{directory}/new/sub.py"])
async def test_files_are_written_whole(room: Room, path: str) -> None:
    with acting_as(ALICE):
        model = await make_model(room)
        given = ModelInput(file_path=path.format(directory=model.directory), file_text="ä = 1\n")
        await room.models.save_file("m1", given)
        assert await room.models.read_file("m1/new/sub.py") == "ä = 1\n"
        assert await room.models.read_file("m1%2Fnew%2Fsub.py") == "ä = 1\n"
        assert await room.models.read_file(str(model.directory / "new" / "sub.py")) == "ä = 1\n"
        assert len(await room.models.list_files("m1")) == 3
        await room.models.save_file("m1", ModelInput(texts=ProgramTexts(main="pass\n")))
        assert await room.models.read_file("m1/main.py") == "pass\n"
        await refused(room.models.save_file("m1", ModelInput()), Code.INVALID_ARGUMENT, "tmpfilePath")
        await refused(room.models.save_file("m1", ModelInput(file_path="a")), Code.INVALID_ARGUMENT, "tmpfileContent")
        await refused(room.models.save_file("none", ModelInput()), Code.NOT_FOUND)


@pytest.mark.parametrize(
    ("filename", "code"),
    [
        ("m1/none.py", Code.NOT_FOUND),
        ("none/main.py", Code.NOT_FOUND),
        ("m1/net", Code.NOT_FOUND),
        ("m1/" + "x" * 300, Code.NOT_FOUND),
        ("m1", Code.INVALID_ARGUMENT),
        ("m1/", Code.INVALID_ARGUMENT),
        ("", Code.INVALID_ARGUMENT),
        ("m1/../../secret", Code.INVALID_ARGUMENT),
        ("m1%2F..%2F..%2Fsecret", Code.INVALID_ARGUMENT),
        ("m1//etc/passwd", Code.INVALID_ARGUMENT),
        ("/etc/passwd", Code.INVALID_ARGUMENT),
        ("m1/out/secret", Code.INVALID_ARGUMENT),
        ("m1/circle", Code.INVALID_ARGUMENT),
        ("{directory}/circle", Code.INVALID_ARGUMENT),
        ("m1/" + "a/" * 3_000, Code.INVALID_ARGUMENT),
        ("{directory}" + "/a" * 3_000, Code.INVALID_ARGUMENT),
        ("m1/binary", Code.INVALID_ARGUMENT),
        ("m1/a\0b", Code.INVALID_ARGUMENT),
    ],
)
async def test_reading_stays_inside_the_model(room: Room, filename: str, code: Code) -> None:
    (room.home / "secret").write_text("secret")
    with acting_as(ALICE):
        model = await make_model(room)
        (model.directory / "out").symlink_to(room.home)
        (model.directory / "circle").symlink_to("circle")
        (model.directory / "binary").write_bytes(b"\xff\xfe")
        await refused(room.models.read_file(filename.format(directory=model.directory)), code)


@pytest.mark.parametrize(
    ("filename", "code"),
    [
        ("net/none.py", Code.NOT_FOUND),
        ("none/main.py", Code.NOT_FOUND),
        ("net", Code.INVALID_ARGUMENT),
        ("/etc/passwd", Code.INVALID_ARGUMENT),
        ("net//etc/passwd", Code.INVALID_ARGUMENT),
        ("net/../../secret", Code.INVALID_ARGUMENT),
        ("net/out/secret", Code.INVALID_ARGUMENT),
    ],
)
async def test_reading_stays_inside_the_template(room: Room, filename: str, code: Code) -> None:
    (room.home / "secret").write_text("secret")
    with acting_as(ALICE):
        await make_template(room)
        template, _ = await room.templates.get("net")
        (template.directory / "out").symlink_to(room.home)
        await refused(room.templates.read_file(filename), code)


@pytest.mark.parametrize("name", [b"\xff.txt", b"a\nb.txt", b"net/\xc3\x28"])
async def test_names_that_no_list_can_hold_are_refused(room: Room, name: bytes) -> None:
    folder = room.make_folder()
    with acting_as(ALICE):
        await make_template(room)
        (folder / os.fsdecode(name)).write_text("x")
        given = TemplateInput(name="odd", path="program", framework="PyTorch")
        await refused(room.templates.create(given), Code.INVALID_ARGUMENT, "path")
        # A program of the user may have left one behind all the same.
        template, _ = await room.templates.get("net")
        (template.directory / os.fsdecode(name)).write_text("x")
        for listed in await room.templates.list_files("net"):
            listed.encode()
        model = await make_model(room)
        (model.directory / os.fsdecode(b"\xff")).write_text("x")
        assert "m1/\\udcff" in await room.models.list_files("m1")


async def test_a_model_is_shown_whatever_a_program_calls_its_files(room: Room) -> None:
    folder = room.data / "net"
    folder.mkdir()
    (folder / "solver.prototxt").write_text("max_iter: 5")
    (folder / "train_test.prototxt").touch()
    with acting_as(ALICE):
        await room.templates.create(TemplateInput(name="caffe", path="net", framework="Caffe"))
        model = await room.models.create(ModelInput(name="m1", template_name="caffe"))
        (model.directory / os.fsdecode(b"\xffinference.prototxt")).write_text("x")
        for shown in (await room.models.get("m1"), *await room.models.list_visible()):
            assert model_detail(*shown).inference_path == f"{model.directory}/\\udcffinference.prototxt"


async def test_weights_are_named_kept_by_owner_and_resolved(room: Room) -> None:
    async def receive(spool: Path) -> tuple[str | None, Path]:
        spool.mkdir(parents=True)
        (spool / "part").write_bytes(content)
        return name, spool / "part"

    content = b"weights"
    with acting_as(ALICE):
        name: str | None = "w.pth"
        kept = await room.weights.upload(receive)
        assert kept == room.home / "weights" / "alice" / "w.pth"
        assert kept.read_bytes() == b"weights"
        taken = await refused(room.weights.upload(receive), Code.ALREADY_EXISTS, "w.pth")
        assert taken.message.endswith("choose another name")
        name, content = "empty.pth", b""
        await refused(room.weights.upload(receive), Code.INVALID_ARGUMENT, "file: 'empty.pth'", "no bytes")
        name, content = None, b"weights"
        assert (await room.weights.upload(receive)).name == f"weights-{hashlib.sha256(b'weights').hexdigest()[:12]}"
        name = "..pth"
        await refused(room.weights.upload(receive), Code.INVALID_ARGUMENT, "file")
        model = await make_model(room, initial_weights="w.pth", weights_folder=str(kept.parent))
        assert (model.initial_weights, model.weights_folder) == (str(kept), str(kept.parent))
        while await room.removals.step() is Next.AT_ONCE:
            pass
        assert room.folders("weights/.incoming") == []
    with acting_as(BOB):
        name = "w.pth"
        bobs = await room.weights.upload(receive)
        assert bobs.parent.name == "bob"
    with acting_as(ALICE):
        bobs_file = ModelInput(initial_weights=str(bobs))
        await refused(room.models.update("m1", bobs_file), Code.INVALID_ARGUMENT, "wfinit")
        for wrong in ({"initial_weights": str(kept.parent)}, {"weights_folder": "w.pth"}):
            with pytest.raises(ServiceError, match=r"^(wfinit|wtfolder): .* allowed: an existing (file|folder)$"):
                await room.models.update("m1", ModelInput(**wrong))


@pytest.mark.parametrize("point", ["copy", "before-row", "after-row", "delete", "remove"])
async def test_a_kill_between_steps_leaves_nothing_half_made(room: Room, tmp_path: Path, point: str) -> None:
    with acting_as(ALICE):
        await make_template(room)
    program = Path(__file__).parent / "killed_model.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = await asyncio.to_thread(
        subprocess.call, [sys.executable, str(program), str(room.home), point], env=environment
    )
    assert code == 9
    made = {model.name for model in await room.catalog.list_models()}
    assert made == ({"m1"} if point == "after-row" else set())
    with acting_as(ALICE):
        if point != "after-row":
            await make_model(room)
        model, files = await room.models.get("m1")
        assert files.main == "print('train')\n"
    # The order of a killed creation falls due later; nothing else is waited for.
    for directory in {room.home / "models" / name for name in room.folders("models")} - {model.directory}:
        await room.catalog.release(directory)
    while await room.removals.step() is Next.AT_ONCE:
        pass
    assert room.folders("models") == [model.uid]


async def test_a_reservation_that_fell_due_is_not_taken(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    with acting_as(ALICE):
        await make_template(room)
        monkeypatch.setattr(models, "RESERVATION", timedelta(seconds=-1))
        await refused(room.models.create(ModelInput(name="m1", template_name="net")), Code.ABORTED, "try again")
        assert await room.models.list_visible() == []
        assert await room.removals.step() is Next.AT_ONCE
    assert room.folders("models") == []


async def test_storage_on_each_database(room_on_each: Room) -> None:
    room = room_on_each
    with acting_as(ALICE):
        await make_template(room)
        results = await asyncio.gather(*(make_model(room, "same") for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(result, Model) for result in results) == 1
        refusals = [result for result in results if not isinstance(result, Model)]
        assert all(isinstance(error, ServiceError) and error.code is Code.ALREADY_EXISTS for error in refusals)
        await asyncio.gather(
            *(room.models.update("same", ModelInput(hyperparameters={n: 2})) for n in ("epoch", "momentum"))
        )
        model, _ = await room.models.get("same")
        assert model.hyperparameters == {"epoch": 2, "momentum": 2}
        assert model.created_at.tzinfo is not None
        await refused(room.templates.delete("net"), Code.ABORTED, "same")
        await room.models.delete("same")
        await room.templates.delete("net")
        while await room.removals.step() is Next.AT_ONCE:
            pass
    assert room.folders("models") == room.folders("templates") == []
