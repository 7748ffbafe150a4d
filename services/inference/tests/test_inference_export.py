"""Entries of the model repository: what is in them, and that they are whole or not there."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from inference_service.backends.registry import BACKENDS, make_backends
from inference_service.storage.repository import DiskRepository
from inference_service.usecases.ports import ExportRefusedError
from servicekit.errors import ServiceError
from triton_fixtures import LABELS, make_model, write_training
from tritonclient.grpc.model_config_pb2 import ModelConfig


@pytest.mark.parametrize("framework", BACKENDS)
def test_every_listed_backend_can_be_made(framework: str) -> None:
    assert all(backend.__class__.__doc__ for backend in make_backends(framework))


async def test_an_entry_has_all_that_triton_needs(tmp_path: Path) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    (code / "__pycache__").mkdir()
    (code / "notes").mkdir()
    (code / "notes" / "layers.py").write_text("")
    repository = DiskRepository(tmp_path)
    await repository.publish(make_model("tiny-online", code, checkpoints))
    entry = tmp_path / "inference" / "repository" / "tiny-online"
    config = (entry / "config.pbtxt").read_text()
    assert 'name: "tiny-online"' in config
    assert "dims: [ 1, 4, 6 ]" in config
    assert "dims: [ 3 ]" in config
    parsed = text_format.Parse(config, ModelConfig())
    assert parsed.input[1].name == "ITEM"
    assert parsed.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert (entry / "labels.txt").read_text().split() == LABELS
    assert "class TritonPythonModel" in (entry / "1" / "model.py").read_text()
    bundle = entry / "1" / "bundle"
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.name != "__pycache__"}
    # Files where Python would make folders: what it writes beside programs would count as a change of them.
    assert all((folder / "__pycache__").is_file() for folder in (entry / "1", bundle, bundle / "notes"))
    assert files == {"model.py", "model_epoch_final.pth", "serving.json", "notes", "notes/layers.py"}
    assert await repository.entries() == {"tiny-online": "uid-tiny-online"}
    assert list((tmp_path / "inference" / "drafts").iterdir()) == []


async def test_publishing_again_changes_nothing_but_a_new_model_replaces(tmp_path: Path) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    repository = DiskRepository(tmp_path)
    model = make_model("tiny", code, checkpoints)
    await repository.publish(model)
    mark = tmp_path / "inference" / "repository" / "tiny" / "mark"
    mark.touch()
    await repository.publish(model)
    assert mark.exists()
    await repository.publish(make_model("tiny", code, checkpoints, uid="later"))
    assert not mark.exists()
    await repository.remove("tiny", model.uid)
    assert await repository.entries() == {"tiny": "later"}, "it belongs to another by now"
    # Whoever comes second finds nothing.
    await asyncio.gather(*(repository.remove("tiny", "later") for _ in range(8)))
    assert await repository.entries() == {}
    assert await repository.drafts() == set()


def _as_circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda code, checkpoints: (checkpoints / "serving.json").unlink(), "serving.json"),
        (lambda code, checkpoints: (checkpoints / "serving.json").write_text("{"), "serving.json"),
        (lambda code, checkpoints: _as_pipe(checkpoints / "serving.json"), "serving.json.*not a plain file"),
        (lambda code, checkpoints: _as_circle(checkpoints / "serving.json"), "serving.json.*is not usable"),
        (lambda code, checkpoints: (checkpoints / "serving.json").write_text('{"labels": []}'), "channels"),
        (lambda code, checkpoints: (checkpoints / "model_epoch_final.pth").unlink(), "model_epoch_final.pth"),
        (lambda code, checkpoints: (code / "model.py").unlink(), "model.py"),
        (lambda code, checkpoints: (code / "serving.json").mkdir(), "a folder serving.json"),
    ],
)
async def test_what_is_missing_is_named_and_nothing_stays(tmp_path: Path, spoil, words: str) -> None:  # type: ignore[no-untyped-def]
    code, checkpoints = write_training(tmp_path / "training")
    spoil(code, checkpoints)
    repository = DiskRepository(tmp_path)
    with pytest.raises(ExportRefusedError, match=words):
        await repository.publish(make_model("tiny", code, checkpoints))
    assert await repository.entries() == {}


async def test_a_training_with_an_input_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    serving = json.loads((checkpoints / "serving.json").read_text())
    (checkpoints / "serving.json").write_text(json.dumps(serving | {"height": 40_000, "width": 40_000}))
    reason = await DiskRepository(tmp_path).refusal("PyTorch", str(code), str(checkpoints))
    assert "inputs of a sample have 6400000000 bytes" in reason


def link_weights(training: Path) -> None:
    (training / "checkpoints" / "model_epoch_final.pth").unlink()
    (training / "checkpoints" / "model_epoch_final.pth").symlink_to("../../secret")


def link_checkpoints(training: Path) -> None:
    (training / "checkpoints").rename(training / "moved")
    (training / "checkpoints").symlink_to("moved")


def link_code(training: Path) -> None:
    (training / "code").rename(training / "moved")
    (training / "code").symlink_to("moved")


def link_in_code(training: Path) -> None:
    (training / "code" / "more.py").symlink_to("../../secret")


def pipe_for_weights(training: Path) -> None:
    (training / "checkpoints" / "model_epoch_final.pth").unlink()
    os.mkfifo(training / "checkpoints" / "model_epoch_final.pth")


@pytest.mark.parametrize("spoil", [link_weights, link_checkpoints, link_code, link_in_code, pipe_for_weights])
async def test_what_links_lead_to_is_not_published(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    (tmp_path / "secret").write_text("secret")
    code, checkpoints = write_training(tmp_path / "training")
    spoil(tmp_path / "training")
    with pytest.raises((ExportRefusedError, ServiceError)):
        await DiskRepository(tmp_path).publish(make_model("tiny", code, checkpoints))
    assert not any((tmp_path / "inference").rglob("*.pth"))


async def test_weights_may_be_a_link_to_others_beside_them(tmp_path: Path) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    final = checkpoints / "model_epoch_final.pth"
    final.rename(checkpoints / "model_epoch_3.pth")
    final.symlink_to("model_epoch_3.pth")
    await DiskRepository(tmp_path).publish(make_model("tiny", code, checkpoints))
    served = tmp_path / "inference" / "repository" / "tiny" / "1" / "bundle" / "model_epoch_final.pth"
    assert not served.is_symlink()
    assert served.read_bytes() == final.read_bytes()


async def test_labels_and_names_are_text_not_configuration(tmp_path: Path) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    serving = json.loads((checkpoints / "serving.json").read_text())
    serving["labels"] = ['a"b', "c\nd", "{e}"]
    (checkpoints / "serving.json").write_text(json.dumps(serving))
    await DiskRepository(tmp_path).publish(make_model("tiny", code, checkpoints))
    entry = tmp_path / "inference" / "repository" / "tiny"
    assert (entry / "labels.txt").read_text() == 'a"b\nc d\n{e}\n'


async def test_versions_are_offered_in_one_file_and_kept_apart(tmp_path: Path) -> None:
    repository = DiskRepository(tmp_path)
    entry = tmp_path / "inference" / "repository" / "tiny"
    for number in (1, 2):
        code, checkpoints = write_training(tmp_path / f"training-{number}", number)
        model = make_model("tiny", code, checkpoints, number)
        await repository.publish(model, number)
    assert "versions: [ 1 ]" in (entry / "config.pbtxt").read_text(), "the second is offered by nobody yet"
    await repository.offer("tiny", [2, 1])
    assert (entry / "config.pbtxt").read_text().count("version_policy") == 1
    assert "versions: [ 1, 2 ]" in (entry / "config.pbtxt").read_text()
    weights = [(entry / str(number) / "bundle" / "model_epoch_final.pth").read_bytes() for number in (1, 2)]
    assert weights[0] != weights[1]
    assert await repository.versions("tiny") == {1, 2}
    await repository.remove_versions("tiny", "another", [1])
    assert await repository.versions("tiny") == {1, 2}
    await repository.remove_versions("tiny", model.uid, [1, 7])
    assert [folder.name for folder in entry.glob("[0-9]*")] == ["2"]
    assert list((tmp_path / "inference" / "drafts").iterdir()) == []


async def test_an_entry_of_a_former_release_is_offered(tmp_path: Path) -> None:
    code, checkpoints = write_training(tmp_path / "training")
    repository = DiskRepository(tmp_path)
    await repository.publish(make_model("tiny", code, checkpoints))
    entry = tmp_path / "inference" / "repository" / "tiny"
    # It had one description, without a policy.
    (entry / "1" / "config.pbtxt").unlink()
    config = (entry / "config.pbtxt").read_text()
    (entry / "config.pbtxt").write_text("".join(config.splitlines(keepends=True)[:-1]))
    await repository.offer("tiny", [1])
    assert (entry / "config.pbtxt").read_text() == config


async def test_a_version_with_other_tensors_or_labels_is_no_version(tmp_path: Path) -> None:
    repository = DiskRepository(tmp_path)
    code, checkpoints = write_training(tmp_path / "training")
    await repository.publish(make_model("tiny", code, checkpoints))
    serving = json.loads((checkpoints / "serving.json").read_text())
    for change, words in (({"width": 9}, "4, 9"), ({"labels": LABELS[::-1]}, "labels")):
        (checkpoints / "serving.json").write_text(json.dumps(serving | change))
        with pytest.raises(ExportRefusedError, match=words):
            await repository.publish(make_model("tiny", code, checkpoints, 2), 2)
        entry = tmp_path / "inference" / "repository" / "tiny"
        assert [folder.name for folder in entry.glob("[0-9]*")] == ["1"]
