"""Folders of exec tasks: `$DLMESH_HOME/execs/ID/{code,results,log,spec.json}`, whole or not there at all."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from servicekit.archives import ArchiveLimits, checked_parts, refused, unpack
from servicekit.errors import invalid
from servicekit.folders import copy_file, remove_folder, sync_folder, write_file

from scheduling_service.domain.exec_arguments import ExecArguments
from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.storage.parent_results import copy_results
from scheduling_service.usecases.exec_ports import UploadedFile

CODE, RESULTS, LOG, SPEC = "code", "results", "log", "spec.json"
CONFIG, PARENT = "config.json", "parent"
_DRAFT = ".draft-"
# A folder without a row that is older than this is nobody's.
ORPHAN_SECONDS = 24 * 3600.0
_SHOWN_FILES = 10


class DiskExecFolders:
    """`usecases.exec_ports.ExecFolders` below `root`; tasks go on from `max_results_bytes` at most, 0 is no limit."""

    def __init__(
        self,
        root: Path,
        limits: ArchiveLimits,
        orphan_seconds: float = ORPHAN_SECONDS,
        *,
        max_results_bytes: int = 0,
    ) -> None:
        self._root, self._limits, self._orphan_seconds = root, limits, orphan_seconds
        self._max_results_bytes = max_results_bytes

    def open_draft(self, task_id: str) -> Path:
        draft = self._draft(task_id)
        draft.mkdir(parents=True)
        return draft

    def unpack(self, draft: Path, upload: UploadedFile | None, arguments: ExecArguments) -> None:
        code = draft / CODE
        if upload is None:
            code.mkdir()
            return
        try:
            self._unpack(code, upload, arguments)
        finally:
            # With all else that was sent.
            remove_folder(upload.path.parent)

    def _unpack(self, code: Path, upload: UploadedFile, arguments: ExecArguments) -> None:
        if not unpack(upload.path, code, self._limits):
            name = upload.name or PurePosixPath(arguments.model_main).name or "model"
            if len(checked_parts(name, self._limits)) != 1:
                raise refused(name, "the name of a file")
            code.mkdir()
            copy_file(upload.path, code / name)
            sync_folder(code)

    def find_program(self, draft: Path, arguments: ExecArguments) -> tuple[str, str]:
        code = draft / CODE
        top = [path for path in code.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        roots = [code, *(path for path in top if len(top) == 1 and path.is_dir())]
        if arguments.model_directory and (named := code / arguments.model_directory).is_dir():
            roots.insert(0, named)
        if not arguments.model_main:
            # A command finds its files in the folder that was packed.
            root = roots[0] if arguments.model_directory else roots[-1]
            return str(root.relative_to(draft)), ""
        for root in roots:
            if (root / arguments.model_main).is_file():
                return str(root.relative_to(draft)), arguments.model_main
        raise invalid("--model-main", arguments.model_main, _alternatives(roots[-1], arguments.model_main))

    def write_config(self, folder: Path, text: str) -> None:
        config = folder / CONFIG
        # Unpacked by us: there are files and folders, and no links.
        if config.is_dir():
            remove_folder(config)
        config.unlink(missing_ok=True)
        write_file(config, text)
        sync_folder(folder)

    def copy_results(self, task_id: str, draft: Path) -> bool:
        return copy_results(self.folder(task_id) / RESULTS, draft / PARENT, self._max_results_bytes)

    def parent_results(self, task_id: str) -> str:
        return str(self.folder(task_id) / PARENT)

    def folder(self, task_id: str) -> Path:
        return self._root / task_id

    def _draft(self, task_id: str) -> Path:
        return self._root / f"{_DRAFT}{task_id}"

    def publish(self, draft: Path, task_id: str, spec: ExecSpec) -> None:
        # Never with the draft itself: one that is gone would come back without its program.
        for path in (draft / RESULTS, draft / RESULTS / "model", draft / LOG):
            path.mkdir()
        spec.write(draft / SPEC)
        for folder in (draft / RESULTS, draft):
            sync_folder(folder)
        draft.rename(self.folder(task_id))
        sync_folder(self._root)

    def discard(self, task_id: str) -> None:
        draft = self._draft(task_id)
        if draft.exists():
            remove_folder(draft)

    def remove(self, task_id: str) -> None:
        remove_folder(self.folder(task_id))

    def orphans(self) -> Sequence[str]:
        now = time.time()
        found = []
        for path in self._root.iterdir() if self._root.is_dir() else ():
            try:
                is_old = now - path.lstat().st_mtime >= self._orphan_seconds
            except FileNotFoundError:
                continue
            if is_old and path.is_dir():
                found.append(path.name)
        return found


def _alternatives(root: Path, wanted: str) -> str:
    """What the upload holds, as far as it helps."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    by_case = {name.casefold(): name for name in names}
    if near := by_case.get(wanted.casefold()) or next(iter(difflib.get_close_matches(wanted, names[:1000], 1)), ""):
        return f"a file of the upload, such as {near}"
    shown = ", ".join(names[:_SHOWN_FILES]) + (", ..." if len(names) > _SHOWN_FILES else "")
    return f"a file of the upload, which holds {shown or 'no file'}"
