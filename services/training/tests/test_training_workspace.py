"""The folders of runs: copies appear whole, outlive a power cut, and stay while a program runs from them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from servicekit import folders
from servicekit.folders import copy_file, copy_folder, remove_folder
from training_fakes import make_training, make_validation
from training_service.domain.removals import Removal
from training_service.domain.runs import Training
from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.storage import workspace as workspace_module
from training_service.storage.workspace import DiskWorkspace


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder."""
    folder = tmp_path / "models" / "m"
    (folder / "nets" / "empty").mkdir(parents=True)
    (folder / "main.py").write_text("print('main')")
    (folder / "nets" / "net.py").write_text("print('net')")
    (folder / "start.sh").write_text("true")
    (folder / "start.sh").chmod(0o755)
    return folder


def training_of(model: Path) -> Training:
    return make_training(model_path=str(model))


async def test_a_copy_is_whole_or_not_there(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, training = DiskWorkspace(tmp_path), training_of(model)
    folder = Path(workspace.folder(training))
    copied: list[str] = []

    def full(source: Path, target: Path, *, follow_link: bool = False) -> None:
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        copied.append(source.name)
        copy_file(source, target, follow_link=follow_link)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "copy_file", full)
        with pytest.raises(OSError, match="No space left") as caught:
            await workspace.prepare_training(training)
    # What it was is known to who decides whether to try again, and the half of a copy fills no disk.
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints"]
    # A kill leaves a draft.
    (folder / ".code.draft").mkdir()
    (folder / ".code.draft" / "main.py").write_text("half")
    command = await workspace.prepare_training(training)
    code = Path(TrainingSpec.read(command[-1]).code)
    assert code == folder / "code"
    assert (code / "nets" / "empty").is_dir()
    assert {path.relative_to(code).as_posix(): path.read_text() for path in code.rglob("*") if path.is_file()} == {
        "main.py": "print('main')",
        "nets/net.py": "print('net')",
        "start.sh": "true",
    }
    assert os.access(code / "start.sh", os.X_OK)
    assert not (folder / ".code.draft").exists()


async def test_everything_is_durable_before_it_has_its_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, training = DiskWorkspace(tmp_path), training_of(model)
    folder = Path(workspace.folder(training))
    synced: list[str] = []
    sync, rename = os.fsync, Path.rename

    def remembered(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(f"{folder}/"))
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        synced.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", remembered)
    monkeypatch.setattr(Path, "rename", renamed)
    await workspace.prepare_training(training)
    draft = {".code.draft", *(f".code.draft/{name}" for name in ("main.py", "start.sh", "nets", "nets/net.py"))}
    assert draft | {".code.draft/nets/empty"} == set(synced[: synced.index("renamed")])
    assert synced[synced.index("renamed") + 1 :] == [
        str(folder),
        ".spec.json.draft",
        str(folder),
        str(folder.parent),
    ]


async def test_a_validation_keeps_the_code_that_its_program_may_be_running_from(tmp_path: Path, model: Path) -> None:
    workspace, validation = DiskWorkspace(tmp_path), make_validation(inference_text="print('inference')")
    await workspace.prepare_training(training_of(model))
    command = await workspace.prepare_validation(validation)
    code = Path(ValidationSpec.read(command[-1]).code)
    assert code == Path(workspace.folder(validation)) / "code"
    before = {path: path.stat().st_ino for path in [code, *code.rglob("*")]}
    assert code / "inference.py" in before
    # The answer to the submission was lost: it is prepared again.
    assert await workspace.prepare_validation(validation) == command
    assert {path: path.stat().st_ino for path in [code, *code.rglob("*")]} == before


async def test_a_copy_of_a_programs_files_leads_nowhere_else(tmp_path: Path, model: Path) -> None:
    workspace, validation = DiskWorkspace(tmp_path), make_validation(inference_text="print('inference')")
    training = training_of(model)
    await workspace.prepare_training(training)
    theirs = Path(workspace.folder(training)) / "code"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (theirs / "folder").symlink_to(elsewhere)
    (theirs / "inference.py").symlink_to(elsewhere / "nothing.py")
    code = Path(ValidationSpec.read((await workspace.prepare_validation(validation))[-1]).code)
    assert (code / "folder").readlink() == elsewhere
    assert (code / "inference.py").read_text() == "print('inference')"
    assert not (code / "inference.py").is_symlink()
    assert list(elsewhere.iterdir()) == []


def test_pipes_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    os.mkfifo(tmp_path / "from" / "pipe")
    with pytest.raises(OSError, match="not a plain file"):
        copy_folder(tmp_path / "from", tmp_path / "to", follow_links=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The weights of another training, with a checkpoint."""
    folder = tmp_path / "trainings" / "other" / "checkpoints"
    (folder / "steps" / "step-0000000010").mkdir(parents=True)
    (folder / "steps" / "step-0000000010" / "state.pt").write_text("large")
    (folder / "parts" / "steps").mkdir(parents=True)
    (folder / "parts" / "steps" / "one.bin").write_text("one")
    (folder / "model_epoch_final.pth").write_text("learned")
    return folder


async def test_initial_weights_outlive_their_training(tmp_path: Path, model: Path, source: Path) -> None:
    workspace, training = DiskWorkspace(tmp_path), replace(training_of(model), weights_folder=str(source))
    (spec,) = {(await workspace.prepare_training(training))[-1] for _ in range(2)}
    remove_folder(source.parent)
    weights = Path(TrainingSpec.read(spec).weights)
    assert {
        path.relative_to(weights).as_posix(): path.read_text() for path in weights.rglob("*") if path.is_file()
    } == {
        "model_epoch_final.pth": "learned",
        "parts/steps/one.bin": "one",
    }
    # Prepared again, when nobody heard that its job was accepted.
    assert TrainingSpec.read((await workspace.prepare_training(training))[-1]).weights == str(weights)
    # They are none of the files that it has written, and go with it.
    assert not weights.is_relative_to(workspace.folder(training))
    await workspace.remove(Removal(training.uid, "training", training.name, training.job_id))
    assert not weights.parent.exists()
    assert not Path(workspace.folder(training)).exists()


async def test_a_file_of_weights_keeps_its_name(tmp_path: Path, model: Path, source: Path) -> None:
    file = source / "model_epoch_final.pth"
    (source / "serving.json").write_text("{}")
    workspace, training = DiskWorkspace(tmp_path), replace(training_of(model), weights_file=str(file))
    weights = Path(TrainingSpec.read((await workspace.prepare_training(training))[-1]).weights)
    assert (weights.name, weights.read_text(), weights.samefile(file)) == (file.name, "learned", True)
    assert sorted(path.name for path in weights.parent.iterdir()) == ["model_epoch_final.pth", "serving.json"]


async def test_weights_that_are_no_training_s_are_used_where_they_are(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data" / "steps").mkdir(parents=True)
    (tmp_path / "data" / "steps" / "w.pth").write_text("w")
    workspace = DiskWorkspace(tmp_path)
    for given in ({"weights_folder": str(tmp_path / "data")}, {"weights_file": str(tmp_path / "data/steps/w.pth")}):
        training = replace(training_of(model), **given)
        assert TrainingSpec.read((await workspace.prepare_training(training))[-1]).weights == training.weights


@pytest.mark.parametrize("case", ["another file system", "a link", "many files", "deep folders", "closed"])
async def test_weights_without_links_are_used_where_they_are(
    tmp_path: Path, model: Path, source: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    whole = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path == source:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path)

    if case == "a link":
        (source / "latest.pth").symlink_to("model_epoch_final.pth")
    elif case == "many files":
        for number in range(workspace_module.MAX_LINKS):
            (source / f"{number}.pth").touch()
    elif case == "deep folders":
        (source / Path(*["a"] * 20)).mkdir(parents=True)
    elif case == "closed":
        monkeypatch.setattr(Path, "iterdir", refused)
    else:
        monkeypatch.setattr(os, "link", refuse)
    workspace, training = DiskWorkspace(tmp_path), replace(training_of(model), weights_folder=str(source))
    assert TrainingSpec.read((await workspace.prepare_training(training))[-1]).weights == str(source)
    assert list((tmp_path / "initial-weights").iterdir()) == []
    assert sorted(path.name for path in Path(workspace.folder(training)).iterdir()) == [
        "checkpoints",
        "code",
        "spec.json",
    ]
