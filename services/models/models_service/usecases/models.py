"""Create, read, change and delete models and their files."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from servicekit.errors import ServiceError, already_exists, in_use, invalid, not_found, sendable
from servicekit.identity import Identity, acting_as, current_identity
from servicekit.names import check_name
from servicekit.paths import check_length
from servicekit.times import utc_now
from servicekit.weight_paths import WeightPaths

from models_service.domain.hyperparameters import check_complete, check_duration, settle
from models_service.domain.model import RESERVED_NAMES, Model, check_batch_size
from models_service.domain.prototxt import solver_fields
from models_service.domain.template import Template
from models_service.domain.words import ACCELERATORS, FRAMEWORKS, MODEL_TYPES, STRATEGIES, check_text, read_word
from models_service.usecases import folders
from models_service.usecases.folders import ProgramFiles, ProgramTexts
from models_service.usecases.ports import Activity, Catalog, Datasets, InstanceGroups
from models_service.usecases.program_config import CONFIG, changed_config
from models_service.usecases.templates import MANIFEST

RESERVATION = timedelta(minutes=30)
_UID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class ModelInput:
    """What a request says of a model; None was not said."""

    name: str | None = None
    template_name: str | None = None
    framework: str | None = None
    description: str | None = None
    accelerator: str | None = None
    type: str | None = None
    hyperparameters: Mapping[str, Any] | None = None
    dataset: str | None = None
    batch_size: int | None = None
    instance_group_id: str | None = None
    instance_group_name: str | None = None
    initial_weights: str | None = None
    weights_folder: str | None = None
    image_dimension: str | None = None
    framework_version: str | None = None
    distribute_strategy: str | None = None
    file_path: str | None = None
    file_text: str | None = None
    texts: ProgramTexts = field(default_factory=ProgramTexts)


ModelView = tuple[Model, ProgramFiles]

_TEXTS = {
    "description": "description",
    "image_dimension": "dimimage",
    "framework_version": "frameworkVersion",
    "distribute_strategy": "distributeStrategy",
}


class Models:
    """The use cases of models."""

    def __init__(
        self,
        catalog: Catalog,
        home: Path,
        *,
        weights: WeightPaths,
        datasets: Datasets,
        groups: InstanceGroups,
        activity: Activity,
        wake: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._folder = home / "models"
        self._weights = weights
        self._datasets = datasets
        self._groups = groups
        self._activity = activity
        self._wake = wake

    async def create(self, given: ModelInput) -> Model:
        """Make a model from a template: settings checked, files copied, one row written. 400, 403, 409."""
        name = check_name("name", given.name or "", RESERVED_NAMES)
        owner = current_identity().user
        template = await self._template(given.template_name or "")
        _check_framework(given.framework or "", template)
        uid = uuid4().hex
        blank = Model(
            uid=uid,
            name=name,
            owner=owner,
            template_uid=template.uid,
            template_name=template.name,
            framework=template.framework,
            directory=self._folder / uid,
            created_at=utc_now(),
            framework_version=template.framework_version,
            batch_size=template.batch_size,
        )
        blank = replace(blank, hyperparameters=template.hyperparameters)
        settings = await self._settings(blank, given)
        if await self._catalog.find_model(name) is not None:
            raise already_exists("model", name)
        model = replace(blank, **settings)
        await self._check_complete(model, template.directory, given.texts)
        await self._keep(model, lambda: self._make_folder(template, model, given.texts))
        return model

    async def copy(self, name: str, new_name: str, given: ModelInput, config: str, uid: str = "") -> Model:
        """Make a model of the caller's from another one's files and settings, changed by what is given; what the object
        in the text `config` names is changed in its config.json. `uid`, where given, was drawn by the caller for this
        model. 400, 403, 404, 409."""
        source = await self._find(name)
        check_name("newmodelname", new_name, RESERVED_NAMES)
        if uid and not _UID.fullmatch(uid):
            raise invalid("uid", uid, "32 hexadecimal digits")
        uid, owner = uid or uuid4().hex, current_identity().user
        blank = replace(source, uid=uid, name=new_name, owner=owner, directory=self._folder / uid, created_at=utc_now())
        if await self._catalog.find_model(new_name) or await self._catalog.find_model_by_uid(uid):
            raise already_exists("model", new_name)
        model = replace(blank, **await self._settings(blank, given))
        await self._check_complete(model, source.directory, given.texts)
        # Before anything is copied: it may have to be refused.
        changed = await asyncio.to_thread(changed_config, source.directory, config) if config else ""

        def make_folder() -> None:
            folders.copy_folder(source.directory, model.directory)
            if changed:
                folders.write_text(model.directory, CONFIG, changed, CONFIG)

        await self._keep(model, make_folder)
        return model

    async def configure(self, name: str, given: ModelInput, config: str) -> None:
        """Change the settings of a model, and in its config.json what the object in the text `config` names; 400, 403,
        404. Whoever was cut off in between repeats it."""
        model = await self._find(name)
        # Before the settings are changed: it may have to be refused.
        changed = await asyncio.to_thread(changed_config, model.directory, config) if config else ""
        await self.update(name, given)
        if changed:
            await asyncio.to_thread(folders.write_text, model.directory, CONFIG, changed, CONFIG)

    async def _keep(self, model: Model, make_folder: Callable[[], None]) -> None:
        """The folder, then the row: whole, or neither."""
        await self._catalog.reserve(model.directory, utc_now() + RESERVATION)
        try:
            await asyncio.to_thread(make_folder)
            await self._catalog.add_model(model)
        except Exception:  # a cancelled call's copy may still be writing: its order falls due by itself
            await self._catalog.release(model.directory)
            self._wake()
            raise

    async def list_visible(self, dataset: str | None = None) -> list[ModelView]:
        """The caller's models by name (those for one `dataset`), without the texts of their programs."""
        identity = current_identity()
        shown = [
            model
            for model in await self._catalog.list_models()
            if identity.may_access(model.owner) and dataset in (None, model.dataset)
        ]
        return await asyncio.to_thread(
            lambda: [(model, folders.program_files(model.directory, model.framework)) for model in shown]
        )

    async def get(self, name: str) -> ModelView:
        """One model with the texts of its program; 404, 403."""
        model = await self._find(name)
        return model, await asyncio.to_thread(folders.program_files, model.directory, model.framework, with_texts=True)

    async def update(self, name: str, given: ModelInput) -> None:
        """Change what is given, hyperparameters one by one; what is running keeps what it started with."""
        model = await self._find(name)
        for wire_name, value, fixed in (
            ("name", given.name, model.name),
            ("templatename", given.template_name, model.template_name),
            ("framework", given.framework, model.framework),
        ):
            if value and value.casefold() != fixed.casefold():
                raise invalid(wire_name, value, f"{fixed}, which a model keeps")
        changes = await self._settings(model, given)
        if changes.get("dataset", model.dataset) != model.dataset:
            # Datasets are kept while a model names them, and what runs still reads this one.
            await self._check_idle(name)
        await self._check_complete(replace(model, **changes), model.directory, given.texts)
        changes.pop("hyperparameters", None)
        await asyncio.to_thread(given.texts.write_to, model.directory)
        await self._catalog.change_model(
            name,
            lambda current: replace(
                current,
                hyperparameters=settle(current.hyperparameters, given.hyperparameters or {}, current.framework),
                **changes,
            ),
        )

    async def delete(self, name: str) -> None:
        """Remove the model and its files; 404, 403, and 409 while something of it runs."""
        model = await self._find(name)
        await self._check_idle(name)
        await self._catalog.remove_model(model.uid)
        self._wake()

    async def _check_idle(self, name: str) -> None:
        # Another user's prediction may run on it too: asked with the service's own rights.
        with acting_as(Identity.service("models")):
            user = await self._activity.of_model(name)
        if user is not None:
            raise in_use("model", name, user)

    async def list_files(self, name: str) -> list[str]:
        """File names as `read_file` takes them."""
        model = await self._find(name)
        files = await asyncio.to_thread(folders.list_files, model.directory)
        return [f"{name}/{sendable(file)}" for file in files]

    async def read_file(self, filename: str) -> str:
        """The text of `modelname/relative/path` or of an absolute path in a model's folder; 404, 403, 400."""
        model, relative = await self._locate(filename)
        return await asyncio.to_thread(folders.read_text, model.directory, relative, "filename")

    async def save_file(self, name: str, given: ModelInput) -> None:
        """Write `tmpfileContent` to `tmpfilePath`, and the program texts that are given; 404, 403, 400.

        A solver that cannot be trained is refused, by whichever field it comes, and nothing is written then.
        """
        model = await self._find(name)
        if given.file_path is None and not given.texts:
            raise invalid("tmpfilePath", "", "a file of the model (or tfmainContent, solverContent, ... is given)")
        if given.texts.solver is not None:
            await self._check_complete(model, model.directory, given.texts)
        if given.file_path is not None:
            if given.file_text is None:
                raise invalid("tmpfileContent", "", "the text to write to tmpfilePath")
            relative = _relative(given.file_path, model)
            if relative == await asyncio.to_thread(folders.solver_name, model.directory):
                solver = ProgramTexts(solver=given.file_text)
                await self._check_complete(model, model.directory, solver, "tmpfileContent")
            await asyncio.to_thread(folders.write_text, model.directory, relative, given.file_text, "tmpfilePath")
        await asyncio.to_thread(given.texts.write_to, model.directory)

    async def _settings(self, model: Model, given: ModelInput) -> dict[str, Any]:
        """The checked settings that `given` changes in `model`, by field."""
        changes: dict[str, Any] = {
            attribute: check_text(wire_name, value)
            for attribute, wire_name in _TEXTS.items()
            if (value := getattr(given, attribute)) is not None
        }
        if given.accelerator:
            changes["accelerator"] = read_word("accelerator", given.accelerator, ACCELERATORS)
        if given.distribute_strategy and model.framework == "TensorFlow":
            strategy = read_word("distributeStrategy", given.distribute_strategy, STRATEGIES)
            changes["distribute_strategy"] = strategy
        if given.type:
            changes["type"] = read_word("type", given.type, MODEL_TYPES)
        if given.hyperparameters is not None:
            changes["hyperparameters"] = settle(model.hyperparameters, given.hyperparameters, model.framework)
        if given.batch_size is not None:
            changes["batch_size"] = check_batch_size(given.batch_size)
        for attribute, wire_name in (("initial_weights", "wfinit"), ("weights_folder", "wtfolder")):
            text = getattr(given, attribute)
            if text:
                # Whose training a path belongs to is asked when a training begins from it.
                is_folder = wire_name == "wtfolder"
                path = await asyncio.to_thread(self._weights.resolve, wire_name, text, model.owner, is_folder=is_folder)
                changes[attribute] = str(path)
            elif text is not None:
                changes[attribute] = ""
        changes |= await self._instance_group(model, given)
        if given.dataset is not None:
            if given.dataset and given.dataset != model.dataset:
                check_name("dataset", given.dataset)
                await self._datasets.require(given.dataset, "dataset")
            changes["dataset"] = given.dataset
        return changes

    async def _check_complete(
        self, model: Model, directory: Path, texts: ProgramTexts, field: str = "solverContent"
    ) -> None:
        """400 when the settings of `model`, whose files are those of `directory` and `texts`, do not fit together;
        `field` is where its solver's text comes from."""
        # In a thread: a text may be megabytes.
        said = await asyncio.to_thread(_said_by_solver, directory, texts, field) if model.framework == "Caffe" else {}
        check_complete(model.hyperparameters, model.framework, model.accelerator, said)
        if model.type == "Training":
            check_duration(model.hyperparameters, model.framework, said)

    async def _instance_group(self, model: Model, given: ModelInput) -> dict[str, Any]:
        # A detail that is sent back carries both; only what differs from the row is a wish.
        wished = [
            (field, text)
            for field, text, current in (
                ("sig", given.instance_group_id, model.instance_group_id),
                ("signame", given.instance_group_name, model.instance_group_name),
            )
            if text and text != current
        ]
        groups = [(field, text, await self._groups.find(text, field)) for field, text in wished]
        if len({group.id for _, _, group in groups}) > 1:
            raise invalid(
                "signame", groups[1][1], f"the name of the instance group that sig names, {groups[0][2].name}"
            )
        if not groups:
            return {}
        group = groups[0][2]
        return {"instance_group_id": group.id, "instance_group_name": group.name}

    async def _template(self, name: str) -> Template:
        # POST /models documents no 404, so an unknown template is a 400.
        template = await self._catalog.find_template(name) if name else None
        if template is None:
            raise invalid("templatename", name, "the name of a model template (GET /modeltemplates lists them)")
        template.require_read(current_identity())
        return template

    def _make_folder(self, template: Template, model: Model, texts: ProgramTexts) -> None:
        leave_out = (MANIFEST,) if template.built_in else ()
        folders.copy_folder(template.directory, model.directory, leave_out=leave_out)
        texts.write_to(model.directory)

    async def _find(self, name: str) -> Model:
        model = await self._catalog.find_model(name)
        if model is None:
            raise not_found("model", name)
        current_identity().require_access("model", name, model.owner)
        return model

    async def _locate(self, filename: str) -> tuple[Model, str]:
        text = folders.decode(filename)
        allowed = "modelname/relative/path, as the list of files prints it"
        check_length("filename", text)
        if text.startswith("/"):
            try:
                uid, *rest = Path(text).resolve().relative_to(self._folder.resolve()).parts
            except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: links in a circle
                raise invalid("filename", text, allowed) from error
            model = await self._catalog.find_model_by_uid(uid)
            if model is None:
                raise not_found("file", text)
            current_identity().require_access("model", model.name, model.owner)
            relative = "/".join(rest)
        else:
            name, _, relative = text.partition("/")
            if not name or not relative:
                raise invalid("filename", text, allowed)
            model = await self._find(name)
        return model, relative


def _said_by_solver(directory: Path, texts: ProgramTexts, field: str) -> dict[str, str]:
    """The fields of the solver that is to be in the Caffe folder `directory`; 400 when its text cannot be kept."""
    if texts.solver is None:
        return solver_fields(folders.solver_text(directory))
    folders.check_size(texts.solver, field)
    return solver_fields(texts.solver, field)


def _check_framework(text: str, template: Template) -> None:
    """400 unless `text` is empty or means the template's framework."""
    allowed = f"{template.framework}, the framework of the model template {template.name!r}"
    # GET /frameworks lists its elastic kind, too: edtPyTorch.
    word = text if text.casefold() != f"edt{template.framework}".casefold() else template.framework
    try:
        named = read_word("framework", word, FRAMEWORKS) if text else template.framework
    except ServiceError as error:
        raise invalid("framework", text, allowed) from error
    if named != template.framework:
        raise invalid("framework", text, allowed)


def _relative(path: str, model: Model) -> str:
    """A file of `model` from `relative`, `modelname/relative` (as listed) or an absolute path below its `path`."""
    for prefix in (f"{model.directory}/", f"{model.name}/"):
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return path
