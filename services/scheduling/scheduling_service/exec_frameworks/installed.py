"""All frameworks: the built-in ones and the plug-ins below `$DLMESH_HOME/exec-frameworks`."""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from servicekit.errors import ServiceError, invalid, not_found
from servicekit.folders import copy_folder, remove_folder, sync_folder
from servicekit.names import check_name

from scheduling_service.exec_frameworks.base import ExecFramework
from scheduling_service.exec_frameworks.plugin import DESCRIPTION_FILE, PluginFramework
from scheduling_service.exec_frameworks.registry import FRAMEWORKS, make_framework

log = logging.getLogger(__name__)

MAX_FILES, MAX_PLUGIN_BYTES = 1000, 100 * 1024 * 1024


class InstalledFrameworks:
    """`usecases.exec_ports.ExecFrameworks`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def all(self) -> Sequence[ExecFramework]:
        return [*(make_framework(name) for name in FRAMEWORKS), *self._plugins()]

    def get(self, name: str) -> ExecFramework:
        known = {built_in.casefold(): built_in for built_in in FRAMEWORKS}
        if name.casefold() in known:
            return make_framework(known[name.casefold()])
        plugins = self._plugins()
        for plugin in plugins:
            if plugin.name.casefold() == name.casefold():
                return plugin
        raise invalid("--exec-start", name, [*FRAMEWORKS, *(plugin.name for plugin in plugins)])

    def install(self, source: Path) -> ExecFramework:
        if not (source / DESCRIPTION_FILE).is_file():
            raise invalid("path", str(source), f"a folder with {DESCRIPTION_FILE}")
        _check_files(source)
        name = check_name(f"{DESCRIPTION_FILE}, name", PluginFramework(source).name)
        if name.casefold() in {built_in.casefold() for built_in in FRAMEWORKS}:
            raise invalid(f"{DESCRIPTION_FILE}, name", name, "a name that is not built in")
        self._root.mkdir(parents=True, exist_ok=True)
        draft = self._root / f".draft-{secrets.token_hex(8)}"
        try:
            copy_folder(source, draft, follow_links=False)
            self._replace(draft, name)
        finally:
            if draft.exists():
                remove_folder(draft)
        return PluginFramework(self._root / name)

    def remove(self, name: str) -> None:
        for plugin in self._plugins():
            if plugin.name == name:
                self._retire(plugin.folder)
                return
        raise not_found("framework plug-in", name)

    def _replace(self, draft: Path, name: str) -> None:
        for plugin in self._plugins():
            # Names are told apart in any case.
            if plugin.name.casefold() == name.casefold() and plugin.name != name:
                self._retire(plugin.folder)
        target = self._root / name
        if target.exists():
            self._retire(target)
        draft.rename(target)
        sync_folder(self._root)

    def _retire(self, folder: Path) -> None:
        old = self._root / f".old-{secrets.token_hex(8)}"
        folder.rename(old)
        sync_folder(self._root)
        remove_folder(old)

    def _plugins(self) -> list[PluginFramework]:
        found = []
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            if folder.name.startswith("."):
                continue
            try:
                found.append(PluginFramework(folder))
            except ServiceError as error:
                # Somebody changed its files.
                log.warning("framework plug-in %s is left out: %s", folder.name, error.message)
        return found


def _check_files(source: Path) -> None:
    """400 for what is no plain file or folder, and for more than a plug-in may be."""
    files = size = 0
    for path, folders, names in os.walk(source):
        for name in [*folders, *names]:
            file = Path(path, name)
            facts = file.lstat()
            if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
                raise invalid("path", str(file.relative_to(source)), "a folder of plain files, without links")
            files += 1
            size += facts.st_size
            if files > MAX_FILES or size > MAX_PLUGIN_BYTES:
                raise invalid("path", str(source), f"at most {MAX_FILES} files and {MAX_PLUGIN_BYTES} bytes")
