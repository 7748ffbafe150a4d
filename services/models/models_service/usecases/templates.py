"""Create, read, change and delete model templates; register the built-in ones."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from servicekit.errors import ServiceError, already_exists, invalid, not_found, sendable
from servicekit.identity import current_identity
from servicekit.names import check_name
from servicekit.paths import DataRoots
from servicekit.times import utc_now

from models_service.domain.hyperparameters import settle
from models_service.domain.model import check_batch_size
from models_service.domain.template import RESERVED_NAMES, SYSTEM_OWNER, Template, check_files
from models_service.domain.words import FRAMEWORKS, check_text, read_word
from models_service.usecases import folders
from models_service.usecases.folders import ProgramFiles, ProgramTexts
from models_service.usecases.ports import Catalog

log = logging.getLogger(__name__)

RESERVATION = timedelta(minutes=30)
MANIFEST = "template.json"


@dataclass(frozen=True)
class TemplateInput:
    """What a request says of a template; None was not said."""

    name: str | None = None
    path: str | None = None
    framework: str | None = None
    description: str | None = None
    framework_version: str | None = None
    hyperparameters: Mapping[str, Any] | None = None
    texts: ProgramTexts = field(default_factory=ProgramTexts)


TemplateView = tuple[Template, ProgramFiles]


class Templates:
    """The use cases of model templates."""

    def __init__(self, catalog: Catalog, roots: DataRoots, home: Path, wake: Callable[[], None]) -> None:
        self._catalog = catalog
        self._roots = roots
        self._folder = home / "templates"
        self._wake = wake

    async def create(self, given: TemplateInput) -> Template:
        """Copy a server folder; 400 for the folder or framework, 409 for the name."""
        name = check_name("name", given.name or "", RESERVED_NAMES)
        framework = read_word("framework", given.framework or "", FRAMEWORKS)
        source = await asyncio.to_thread(self._check_source, given.path or "", framework)
        if await self._catalog.find_template(name) is not None:
            raise already_exists("model template", name)
        template = Template(
            uid=uuid4().hex,
            name=name,
            owner=current_identity().user,
            framework=framework,
            path=source,
            directory=self._folder / uuid4().hex,
            created_at=utc_now(),
            description=check_text("description", given.description or ""),
            framework_version=check_text("frameworkVersion", given.framework_version or ""),
        )
        await self._catalog.reserve(template.directory, utc_now() + RESERVATION)
        try:
            await asyncio.to_thread(folders.copy_folder, source, template.directory)
            await self._catalog.add_template(template)
        except Exception:
            await self._abandon(template.directory)
            raise
        return template

    async def list_visible(self, framework: str | None = None) -> list[TemplateView]:
        """Built-in ones and the caller's own, by name; 400 for an unknown framework."""
        wanted = read_word("framework", framework, FRAMEWORKS) if framework else None
        identity = current_identity()
        return [
            (template, await self._files(template))
            for template in await self._catalog.list_templates()
            if (template.built_in or identity.may_access(template.owner)) and wanted in (None, template.framework)
        ]

    async def get(self, name: str) -> TemplateView:
        """One template with the texts of its program; 404, 403."""
        template = await self._readable(name)
        return template, await self._files(template, with_texts=True)

    async def update(self, name: str, given: TemplateInput) -> None:
        """Change what is given, a new `path` copies the folder anew; 404, 403, 400."""
        template = await self._readable(name)
        template.require_change(current_identity())
        if given.name and given.name != name:
            raise invalid("name", given.name, f"{name}, a template keeps its name")
        framework = read_word("framework", given.framework, FRAMEWORKS) if given.framework else template.framework
        settle(template.hyperparameters, given.hyperparameters or {}, framework)
        check_text("description", given.description or "")
        check_text("frameworkVersion", given.framework_version or "")
        directory, path = template.directory, template.path
        # A client that sends the whole detail back sends the path it was shown: that asks for no new copy.
        if given.path and given.path != str(template.path):
            path = await asyncio.to_thread(self._check_source, given.path, framework)
            directory = self._folder / uuid4().hex
            await self._catalog.reserve(directory, utc_now() + RESERVATION)
        elif framework != template.framework:
            await asyncio.to_thread(lambda: self._check_framework(framework, directory))
        try:
            if directory != template.directory:
                await asyncio.to_thread(folders.copy_folder, path, directory)
            await asyncio.to_thread(given.texts.write_to, directory)
            await self._catalog.change_template(
                name,
                lambda current: replace(
                    current,
                    framework=framework,
                    directory=directory,
                    path=path,
                    description=current.description if given.description is None else given.description,
                    framework_version=given.framework_version or current.framework_version,
                    hyperparameters=settle(current.hyperparameters, given.hyperparameters or {}, framework),
                ),
            )
        except Exception:
            if directory != template.directory:
                await self._abandon(directory)
            raise
        self._wake()

    async def delete(self, name: str) -> None:
        """Remove it; 404, 403, and 409 while a model made from it exists."""
        (await self._readable(name)).require_change(current_identity())
        await self._catalog.remove_template(name)
        self._wake()

    async def list_files(self, name: str) -> list[str]:
        """File names as `read_file` takes them."""
        template = await self._readable(name)
        names = await asyncio.to_thread(folders.list_files, template.directory)
        return [f"{name}/{sendable(file)}" for file in names if not (template.built_in and file == MANIFEST)]

    async def read_file(self, filename: str) -> str:
        """The text of `templatename/relative/path`; 404 for the template or file, 400 for a path that leaves it."""
        name, _, relative = folders.decode(filename).partition("/")
        if not name or not relative:
            raise invalid("filename", filename, "templatename/relative/path, as the list of files prints it")
        template = await self._readable(name)
        return await asyncio.to_thread(folders.read_text, template.directory, relative, "filename")

    async def register_built_in(self, folder: Path) -> None:
        """Make the rows of the shipped templates what their manifests say; safe to repeat, also by several at once."""
        for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
            template = _read_manifest(manifest)
            try:
                await self._catalog.add_template(template)
            except ServiceError:
                current = await self._catalog.find_template(template.name)
                if current is None or not current.built_in:
                    log.warning("built-in template %s is hidden by one of %s", template.name, current and current.owner)
                    continue
                refreshed = replace(template, uid=current.uid, created_at=current.created_at)
                if refreshed != current:
                    await self._catalog.change_template(template.name, _always(refreshed))

    async def _readable(self, name: str) -> Template:
        template = await self._catalog.find_template(name)
        if template is None:
            raise not_found("model template", name)
        template.require_read(current_identity())
        return template

    def _check_source(self, path: str, framework: str) -> Path:
        source = self._roots.resolve("path", path)
        check_files(framework, folders.check_folder(source, "path"), "path", path)
        return source

    def _check_framework(self, framework: str, directory: Path) -> None:
        check_files(framework, folders.list_files(directory), "framework", framework)

    async def _files(self, template: Template, *, with_texts: bool = False) -> ProgramFiles:
        return await asyncio.to_thread(
            folders.program_files,
            template.directory,
            template.framework,
            shown_as=template.path,
            with_texts=with_texts,
        )

    async def _abandon(self, directory: Path) -> None:
        await self._catalog.release(directory)
        self._wake()


def _always(template: Template) -> Callable[[Template], Template]:
    return lambda _: template


def _read_manifest(manifest: Path) -> Template:
    facts = json.loads(manifest.read_text())
    framework = read_word("framework", facts["framework"], FRAMEWORKS)
    return Template(
        uid=uuid4().hex,
        name=check_name("name", facts["name"], RESERVED_NAMES),
        owner=SYSTEM_OWNER,
        framework=framework,
        path=manifest.parent,
        directory=manifest.parent,
        created_at=utc_now(),
        description=facts.get("description", ""),
        hyperparameters=settle({}, facts.get("hyperparameter", {}), framework),
        batch_size=check_batch_size(facts["batchsize"]) if "batchsize" in facts else None,
        built_in=True,
    )
