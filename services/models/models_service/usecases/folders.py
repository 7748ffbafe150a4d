"""Program folders on disk: copied without following links, read and written inside their bounds."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from servicekit.errors import ServiceError, invalid, not_found, sendable
from servicekit.folders import copy_file, sync_folder
from servicekit.paths import confined

from models_service.domain.template import ELASTIC_MAIN, MAIN, caffe_file

MAX_FILES = 10_000
MAX_FOLDER_BYTES = 2 * 1024**3
MAX_TEXT_BYTES = 16 * 1024**2
# Folders within each other. Walking and removing them takes Python a call within a call for each.
MAX_DEPTH = 100
LEFT_OUT = frozenset({"__pycache__", ".git"})
LISTED_NAMES = "file names in UTF-8 without control characters"


@dataclass(frozen=True)
class ProgramFiles:
    """The files that a detail names, as absolute paths ("" when absent), and their texts when asked for."""

    main_path: str = ""
    solver_path: str = ""
    train_test_path: str = ""
    inference_path: str = ""
    main: str | None = None
    solver: str | None = None
    train_test: str | None = None
    inference: str | None = None


def list_files(directory: Path) -> list[str]:
    """Relative names of all regular files below `directory`, sorted, `/` between folders."""
    names = []
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in files:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                names.append(path.relative_to(directory).as_posix())
    return sorted(names)


def check_folder(directory: Path, field: str) -> list[str]:
    """Relative names of the files of a user's folder; 400 when it is no plain folder of bounded size."""
    if not directory.is_dir():
        raise invalid(field, str(directory), "a folder")
    total = 0
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        if len(Path(folder).relative_to(directory).parts) > MAX_DEPTH:
            raise invalid(field, str(directory), f"a folder with at most {MAX_DEPTH} folders within each other")
        for name in [*folders, *files]:
            path = Path(folder, name)
            facts = path.lstat()
            if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
                raise invalid(field, path.relative_to(directory).as_posix(), "regular files and folders, no links")
            if not _can_be_listed(name):
                raise invalid(field, path.relative_to(directory).as_posix(), LISTED_NAMES)
            total += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
        if total > MAX_FOLDER_BYTES:
            raise invalid(field, str(directory), f"a folder of at most {MAX_FOLDER_BYTES} bytes")
    names = list_files(directory)
    if len(names) > MAX_FILES:
        raise invalid(field, f"{len(names)} files", f"a folder of at most {MAX_FILES} files")
    return names


def _can_be_listed(name: str) -> bool:
    # The contract's list of files is one text with a name a line.
    return sendable(name) == name and not any(ord(sign) < 32 or ord(sign) == 127 for sign in name)


def copy_folder(source: Path, target: Path, *, leave_out: Collection[str] = ()) -> None:
    """Copy the files of `source` to the new folder `target`, durable when this returns."""
    target.mkdir(parents=True)
    for name in list_files(source):
        if name in leave_out:
            continue
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_file(source / name, copy)
    for folder in {target, target.parent, *(path for path in target.rglob("*") if path.is_dir())}:
        sync_folder(folder)


def decode(filename: str) -> str:
    """A file name from a path segment; some clients encode it once more than the gateway decodes it."""
    return filename if "/" in filename else unquote(filename)


def read_text(directory: Path, relative: str, field: str) -> str:
    """The text of one file of `directory`; 404 when there is none, 400 when it leaves the folder or is no text."""
    path = confined(directory, relative, field)
    try:
        exists = path.is_file()
    except OSError:  # a name longer than any file's
        exists = False
    if not exists:
        raise not_found("file", relative)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise invalid(field, relative, f"a text file of at most {MAX_TEXT_BYTES} bytes")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise invalid(field, relative, "a UTF-8 text file", reason="NOT_TEXT") from error


def check_size(text: str, field: str) -> bytes:
    """The bytes of `text`; 400 naming `field` when they are too many for a file of a program."""
    data = text.encode()
    if len(data) > MAX_TEXT_BYTES:
        raise invalid(field, f"{len(data)} bytes", f"a text of at most {MAX_TEXT_BYTES} bytes")
    return data


def write_text(directory: Path, relative: str, text: str, field: str) -> None:
    """Replace or add one file of `directory` at once: a reader sees the old text or the new one, whole."""
    path = confined(directory, relative, field)
    if not directory.is_dir():  # deleted in this moment: it must not come back by a late write
        raise not_found("folder", directory.name)
    if not _can_be_listed(relative):
        raise invalid(field, relative, LISTED_NAMES)
    if relative.endswith("/"):
        raise invalid(field, relative, "a file, not a folder")
    if len(path.relative_to(directory.resolve()).parts) > MAX_DEPTH + 1:
        raise invalid(field, relative, f"a file in at most {MAX_DEPTH} folders within each other")
    data = check_size(text, field)
    draft = path.with_name(f".{secrets.token_hex(8)}.draft")
    try:
        if path.is_dir():
            raise invalid(field, relative, "a file, not a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = (path.stat().st_mode & 0o777) if path.exists() else 0o644
        with draft.open("xb") as writer:
            os.fchmod(writer.fileno(), mode)
            writer.write(data)
            writer.flush()
            os.fsync(writer.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
            raise
        raise invalid(field, relative, "a file name of at most 255 bytes in folders, none of them a file") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def program_files(
    directory: Path, framework: str, *, shown_as: Path | None = None, with_texts: bool = False
) -> ProgramFiles:
    """The files of a template or model folder that its detail names; paths are printed below `shown_as`."""
    try:
        names = {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return ProgramFiles()
    base = shown_as or directory

    def place(name: str | None) -> str:
        # A program may have left one behind that is not UTF-8.
        return sendable(str(base / name)) if name else ""

    def text(name: str | None) -> str | None:
        if not with_texts or not name:
            return None
        try:
            return read_text(directory, name, "filename")
        except ServiceError:
            return None  # not a text after all: the detail is shown without it

    if framework == "Caffe":
        solver, train_test, inference = (caffe_file(kind, names) for kind in ("solver", "train_test", "inference"))
        return ProgramFiles(
            solver_path=place(solver),
            train_test_path=place(train_test),
            inference_path=place(inference),
            solver=text(solver),
            train_test=text(train_test),
            inference=text(inference),
        )
    main = MAIN if MAIN in names else ELASTIC_MAIN if ELASTIC_MAIN in names else None
    return ProgramFiles(main_path=place(main), main=text(main))


def solver_name(directory: Path) -> str | None:
    """The file at the top of a folder that Caffe takes for its solver, if there is one."""
    return caffe_file("solver", [path.name for path in directory.iterdir()]) if directory.is_dir() else None


def solver_text(directory: Path) -> str:
    """What the *solver.prototxt of a Caffe folder says; empty when it has none that is a text."""
    return program_files(directory, "Caffe", with_texts=True).solver or ""


@dataclass(frozen=True)
class ProgramTexts:
    """Program texts that a request brings; None leaves the file as it is."""

    main: str | None = None
    solver: str | None = None
    train_test: str | None = None
    inference: str | None = None

    def write_to(self, directory: Path) -> None:
        """Put the given texts into `directory`; one without a file there yet gets the usual name."""
        if not self:
            return
        names = {path.name for path in directory.iterdir()}
        if self.main is not None:
            write_text(directory, MAIN, self.main, "tfmainContent")
        for kind, text, field in (
            ("solver", self.solver, "solverContent"),
            ("train_test", self.train_test, "trainTestContent"),
            ("inference", self.inference, "inferenceContent"),
        ):
            if text is not None:
                write_text(directory, caffe_file(kind, names) or f"{kind}.prototxt", text, field)

    def __bool__(self) -> bool:
        return any(text is not None for text in (self.main, self.solver, self.train_test, self.inference))
