"""The folders of runs: copies appear whole, outlive a power cut, and stay while a program runs from them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from servicekit import folders
from servicekit.folders import copy_file, copy_folder
from training_fakes import make_training, make_validation
from training_service.domain.runs import Training
from training_service.domain.specs import TrainingSpec, ValidationSpec
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
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(f"{folder}/")
        synced.append(re.sub(r"spec\.json\.\w+\.draft", "spec.json.draft", name))
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
