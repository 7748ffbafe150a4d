"""Algorithms that users install: what is kept of a path or an upload, and what is refused."""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from servicekit.archives import ArchiveLimits
from servicekit.errors import Code, ServiceError
from tuning_service.storage.plugin_folders import DiskPluginFolders
from tuning_service.usecases.ports import InstalledAlgorithm

SMALL = ArchiveLimits(members=6, size_bytes=100_000, depth=4)
FILES = {"optimizer.py": "print(1)", "parts/model.py": "", "parts/deep/table.txt": "x" * 5000}


def algorithm(path: str = "", *, uid: str = "u1", home: str = "", environment: str = "") -> InstalledAlgorithm:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return InstalledAlgorithm("Mine", uid, "owner", now, path, conda_home=home, conda_environment=environment)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def folders(tmp_path: Path, data: Path) -> DiskPluginFolders:
    return DiskPluginFolders(tmp_path / "home", [data], SMALL)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def tar_of(target: Path, files: dict[str, str], mode: str = "w", top: str = "") -> Path:
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        for name, text in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return target


def kept(folders: DiskPluginFolders, uid: str = "u1") -> dict[str, str]:
    root = folders.folder_of(algorithm(uid=uid))
    # Drafts are gone.
    assert [path.name for path in root.parent.iterdir()] == [uid]
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}


def refused(folders: DiskPluginFolders, one: InstalledAlgorithm, upload: Path | None = None) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        folders.install(one, upload)
    assert caught.value.code is Code.INVALID_ARGUMENT
    root = folders.folder_of(one).parent
    assert not root.exists() or not [*root.iterdir()]
    return caught.value


def test_a_folder_of_the_server(folders: DiskPluginFolders, data: Path) -> None:
    write(data / "mine", {**FILES, "__pycache__/optimizer.pyc": "old"})
    folders.install(algorithm("mine"), None)
    assert kept(folders) == FILES
    # It is a copy.
    (data / "mine" / "optimizer.py").write_text("changed")
    assert kept(folders) == FILES


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("top", ["", "mine/", "./"])
@pytest.mark.parametrize("is_upload", [True, False])
def test_a_tar(folders: DiskPluginFolders, data: Path, mode: str, top: str, is_upload: bool) -> None:
    archive = tar_of(data / "some.tar", FILES, mode, top)
    if is_upload:
        folders.install(algorithm(), archive)
    else:
        folders.install(algorithm(str(archive)), None)
    assert kept(folders) == FILES


def test_removal(folders: DiskPluginFolders, data: Path) -> None:
    write(data / "mine", FILES)
    for uid in ("u1", "u2"):
        folders.install(algorithm("mine", uid=uid), None)
    folders.remove("u1")
    assert kept(folders, "u2") == FILES
    folders.remove("u1")


@pytest.mark.parametrize("path", ["nothing", "../home", "/etc", "", "mine\0"])
def test_paths_stay_in_the_data_roots(folders: DiskPluginFolders, path: str) -> None:
    assert refused(folders, algorithm(path)).metadata["field"] == "path"


@pytest.mark.parametrize("files", [{}, {"main.py": ""}, {"a/optimizer.py": "", "b/x": ""}, {"a/b/optimizer.py": ""}])
def test_without_a_program(folders: DiskPluginFolders, data: Path, files: dict[str, str]) -> None:
    (data / "mine").mkdir()
    write(data / "mine", files)
    assert "a folder or a tar with optimizer.py at its top" in refused(folders, algorithm("mine")).message
    error = refused(folders, algorithm(), tar_of(data / "x.tar", files))
    assert "optimizer.py at its top" in error.message
    assert error.metadata["field"] == "file"


def test_a_program_that_is_a_folder(folders: DiskPluginFolders, data: Path) -> None:
    write(data / "mine", {"optimizer.py/x": ""})
    assert "optimizer.py at its top" in refused(folders, algorithm("mine")).message


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "parts" / "link").symlink_to("/etc/passwd"),
        lambda folder: (folder / "parts" / "link").symlink_to("/etc"),
        lambda folder: os.mkfifo(folder / "parts" / "pipe"),
        lambda folder: (folder / "a" / "b" / "c" / "d").mkdir(parents=True),
        lambda folder: [(folder / f"{number}").touch() for number in range(7)],
        lambda folder: (folder / "large").write_bytes(bytes(100_001)),
        lambda folder: (folder / os.fsdecode(b"\xff")).touch(),
    ],
)
def test_folders_of_what_is_not_taken(folders: DiskPluginFolders, data: Path, spoil: Callable[[Path], object]) -> None:
    spoil(write(data / "mine", {"optimizer.py": "", "parts/model.py": ""}))
    refused(folders, algorithm("mine"))


def test_what_is_no_archive(folders: DiskPluginFolders, data: Path) -> None:
    (data / "text").write_text("text")
    os.mkfifo(data / "pipe")
    (data / "link").symlink_to("/etc/passwd")
    for name in ("text", "pipe", "link"):
        assert refused(folders, algorithm(name)).metadata["field"] == "path"
    assert refused(folders, algorithm(), data / "text").metadata["field"] == "file"


def test_hostile_archives(folders: DiskPluginFolders, data: Path) -> None:
    outside = tar_of(data / "x.tar", {"optimizer.py": "", "../../outside": "x"})
    assert "paths that stay inside" in refused(folders, algorithm(), outside).message
    error = refused(folders, algorithm(str(outside)))
    assert error.metadata["field"] == "path"
    assert "'../../outside' is not valid" in error.message
    large = tar_of(data / "large.tar", {"optimizer.py": "x" * 100_001})
    assert "at most 100000 bytes" in refused(folders, algorithm(), large).message


def test_environments(folders: DiskPluginFolders, data: Path, tmp_path: Path) -> None:
    assert folders.python_of(algorithm()) == ""
    conda = tmp_path / "conda"
    for place in ("bin", "envs/tuning/bin"):
        (conda / place).mkdir(parents=True)
        (conda / place / "python").symlink_to(sys.executable)
    assert folders.python_of(algorithm(home=str(conda))) == f"{conda}/bin/python"
    own = f"{conda}/envs/tuning/bin/python"
    assert folders.python_of(algorithm(home=str(conda), environment="tuning")) == own
    assert folders.python_of(algorithm(home=str(conda), environment=f"{conda}/envs/tuning")) == own
    assert folders.python_of(algorithm(environment=f"{conda}/envs/tuning")) == own


@pytest.mark.parametrize(
    ("home", "environment", "field"),
    [
        ("/nowhere", "", "condaHome"),
        ("relative", "", "condaHome"),
        ("", "tuning", "condaHome"),
        ("/nowhere", "tuning", "condaEnv"),
        ("/nowhere", "../tuning", "condaEnv"),
        ("/nowhere", "..", "condaEnv"),
        ("", "/nowhere/tuning", "condaEnv"),
        ("/nowhere\0", "", "condaHome"),
        ("/" + "x" * 5000, "", "condaHome"),
        ("/", "x" * 5000, "condaEnv"),
        ("/dev/null", "", "condaHome"),
    ],
)
def test_environments_that_are_none(
    folders: DiskPluginFolders, data: Path, home: str, environment: str, field: str
) -> None:
    write(data / "mine", FILES)
    error = refused(folders, algorithm("mine", home=home, environment=environment))
    assert error.metadata["field"] == field


def test_an_interpreter_that_cannot_be_run(folders: DiskPluginFolders, data: Path, tmp_path: Path) -> None:
    write(tmp_path / "conda", {"bin/python": "no program"})
    assert (
        f"there is no {tmp_path}/conda/bin/python" in refused(folders, algorithm(home=str(tmp_path / "conda"))).message
    )


def install_and_be_killed(folders: DiskPluginFolders, home: Path, step: int) -> int:
    """Install in a child that is killed before the change of the disk number `step`; how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    changes = itertools.count(1)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        is_change = event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
        if is_change and str(home) in str(arguments) and next(changes) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(count)
        folders.install(algorithm("mine"), None)
        code = 0
    finally:
        os._exit(code)


def test_killed_anywhere_it_is_whole_or_not_there(tmp_path: Path, data: Path) -> None:
    write(data / "mine", FILES)
    folders = DiskPluginFolders(tmp_path / "home", [data], SMALL, orphan_seconds=0.0)
    for step in range(1, 100):
        ended = install_and_be_killed(folders, tmp_path / "home", step)
        folder = folders.folder_of(algorithm())
        if folder.exists():
            found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
            assert found == {*FILES}
        for name in folders.orphans():
            folders.remove_orphan(name)
        if folder.parent.exists():
            assert not [*folder.parent.iterdir()]
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert 10 < step < 99


def test_only_old_leftovers_are_nobodys(tmp_path: Path, data: Path) -> None:
    folders = DiskPluginFolders(tmp_path / "home", [data])
    write(data / "mine", FILES)
    folders.install(algorithm("mine"), None)
    assert folders.orphans() == []
    old = time.time() - 2 * 24 * 3600
    os.utime(folders.folder_of(algorithm()), (old, old))
    assert folders.orphans() == ["u1"]
