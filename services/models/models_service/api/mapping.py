"""Messages to inputs, domain to details: both ways side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dlmesh.models.v1 import models_pb2
from google.protobuf import json_format
from google.protobuf.message import Message
from servicekit.times import format_time

from models_service.domain.framework import Framework
from models_service.domain.hyperparameters import Hyperparameters
from models_service.domain.model import Model
from models_service.domain.template import Template
from models_service.usecases.folders import ProgramFiles, ProgramTexts
from models_service.usecases.models import ModelInput
from models_service.usecases.templates import TemplateInput

# Input attribute to field of the message, where they differ.
_MODEL_FIELDS = {
    "name": "name",
    "template_name": "template_name",
    "framework": "framework",
    "description": "description",
    "accelerator": "accelerator",
    "type": "type",
    "dataset": "dataset",
    "batch_size": "batch_size",
    "instance_group_id": "instance_group",
    "instance_group_name": "instance_group_name",
    "initial_weights": "initial_weights",
    "weights_folder": "weights_folder",
    "image_dimension": "image_dimensions",
    "framework_version": "framework_version",
    "distribute_strategy": "distribute_strategy",
    "file_path": "edited_file_path",
    "file_text": "edited_file_content",
}
_TEMPLATE_FIELDS = {
    "name": "name",
    "path": "path",
    "framework": "framework",
    "description": "description",
    "framework_version": "framework_version",
}
_TEXT_FIELDS = {
    "main": "main_content",
    "solver": "solver_content",
    "train_test": "train_test_content",
    "inference": "inference_content",
}


def model_input(message: Message) -> ModelInput:
    """A create parameter or a whole detail: a field that is not set was not said."""
    return ModelInput(
        **_given(message, _MODEL_FIELDS),
        hyperparameters=_hyperparameters(message),
        texts=ProgramTexts(**_texts(message)),
    )


def tuned_input(hyperparameters: models_pb2.Hyperparameters, batch_size: int) -> ModelInput:
    """As `model_input`, of these settings alone; a batch size of 0 was not said."""
    detail = models_pb2.ModelDetail(hyperparameters=hyperparameters)
    return replace(model_input(detail), batch_size=batch_size or None)


def template_input(message: Message) -> TemplateInput:
    """As `model_input`, of a template."""
    return TemplateInput(
        **_given(message, _TEMPLATE_FIELDS),
        hyperparameters=_hyperparameters(message),
        texts=ProgramTexts(**_texts(message)),
    )


def model_detail(model: Model, files: ProgramFiles) -> models_pb2.ModelDetail:
    """`path` is the model's folder on the server."""
    detail = models_pb2.ModelDetail(
        uid=model.uid,
        name=model.name,
        path=str(model.directory),
        description=model.description,
        template_name=model.template_name,
        framework=model.framework,
        accelerator=model.accelerator,
        hyperparameters=_hyperparameters_message(model.hyperparameters),
        dataset=model.dataset,
        solver_path=files.solver_path,
        train_test_path=files.train_test_path,
        inference_path=files.inference_path,
        image_dimensions=model.image_dimension,
        main_path=files.main_path,
        instance_group=model.instance_group_id,
        instance_group_name=model.instance_group_name,
        initial_weights=model.initial_weights,
        weights_folder=model.weights_folder,
        type=model.type,
        owner=model.owner,
        created_at=format_time(model.created_at),
        framework_version=model.framework_version,
        distribute_strategy=model.distribute_strategy,
        **_shown_texts(files),
    )
    if model.batch_size is not None:
        detail.batch_size = model.batch_size
    return detail


def template_detail(template: Template, files: ProgramFiles) -> models_pb2.ModelTemplateDetail:
    """`path` is the folder that the template was made from."""
    return models_pb2.ModelTemplateDetail(
        name=template.name,
        path=str(template.path),
        description=template.description,
        hyperparameters=_hyperparameters_message(template.hyperparameters),
        framework=template.framework,
        solver_path=files.solver_path,
        train_test_path=files.train_test_path,
        inference_path=files.inference_path,
        main_path=files.main_path,
        framework_version=template.framework_version,
        is_builtin=template.built_in,
        **_shown_texts(files),
    )


def framework_detail(framework: Framework) -> models_pb2.FrameworkDetail:
    """Neither parameter servers nor a network of its own are used."""
    return models_pb2.FrameworkDetail(
        name=framework.name,
        home=framework.home,
        backend=framework.backend,
        accelerator=framework.accelerator,
        framework_version=framework.version,
    )


def files_text(names: Iterable[str]) -> str:
    """The list of files as the one String that the contract asks for."""
    return "\n".join(names)


def _given(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    known = message.DESCRIPTOR.fields_by_name
    return {
        attribute: getattr(message, field)
        for attribute, field in names.items()
        if field in known and (message.HasField(field) if known[field].has_presence else getattr(message, field))
    }


def _texts(message: Message) -> dict[str, str]:
    # A detail that was read and is sent back has "" for the programs its framework does not have.
    return {name: text for name, text in _given(message, _TEXT_FIELDS).items() if text}


def _shown_texts(files: ProgramFiles) -> dict[str, Any]:
    texts = {field: getattr(files, name) for name, field in _TEXT_FIELDS.items()}
    return {field: text for field, text in texts.items() if text is not None}


def _hyperparameters(message: Any) -> dict[str, Any] | None:
    """By the names of the contract; floats as the shortest text that was meant (0.1, not 0.10000000149)."""
    if "hyperparameters" not in message.DESCRIPTOR.fields_by_name or not message.HasField("hyperparameters"):
        return None
    return json_format.MessageToDict(message.hyperparameters)


def _hyperparameters_message(values: Hyperparameters) -> models_pb2.Hyperparameters:
    return json_format.ParseDict(dict(values), models_pb2.Hyperparameters())
