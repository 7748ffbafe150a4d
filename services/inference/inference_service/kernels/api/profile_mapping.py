"""Profiles of kernel models as messages: both ways side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlmesh.inference.v1 import kernels_pb2
from servicekit.errors import invalid
from servicekit.times import format_time

from inference_service.kernels.domain.models import KernelModel
from inference_service.kernels.domain.profiles import KernelProfile, Pairs, ResourceRequest

# Fields of messages beside those of the domain.
_POLICY = {
    "name": "name",
    "schedule_interval": "schedule_interval_milliseconds",
    "kernel_min": "kernel_min",
    "kernel_max": "kernel_max",
    "kernel_delay_release_time": "kernel_delay_release_seconds",
    "task_execution_timeout": "task_execution_timeout_seconds",
    "task_batch_size": "task_batch_size",
    "task_pipe_size": "task_pipe_size",
    "stream_number_per_group": "stream_number_per_group",
    "stream_discard_slow_tasks": "stream_discard_slow_tasks",
}
_KERNEL = {"connection_timeout": "connection_timeout_seconds", "umask": "umask", "gpu": "gpu"}
_RESOURCES = {name: name for name in ("type", "resource_group", "consumer", "resource_requirement")}
# What the platform decides; clients may send it back as it was shown.
_SHOWN_ONLY = ("working_directory", "log_directory", "run_as", "image")


def profile_detail(model: KernelModel, folder: Path, run_as: str) -> kernels_pb2.KernelProfile:
    """`folder` is the model's, `run_as` who its kernels run as."""
    profile = model.profile
    return kernels_pb2.KernelProfile(
        name=model.name,
        created_at=format_time(model.created_at),
        updated_at=format_time(model.updated_at),
        replica=1,
        type=profile.type,
        version=profile.version,
        schema_version=profile.schema_version,
        policy=kernels_pb2.KernelPolicy(**{name: getattr(profile.policy, key) for name, key in _POLICY.items()}),
        kernel=kernels_pb2.KernelSettings(
            working_directory=str(folder / "run"),
            log_directory=str(folder / "run"),
            run_as=run_as,
            image="",
            environments=_environments(profile.kernel.environments),
            **{name: getattr(profile.kernel, key) for name, key in _KERNEL.items()},
        ),
        resource_allocation=kernels_pb2.KernelResourceAllocation(
            service=_resource_detail(profile.service_resources), kernel=_resource_detail(profile.kernel_resources)
        ),
        environments=_environments(profile.environments),
    )


def changed_profile(message: kernels_pb2.KernelProfile, model: KernelModel, folder: Path, run_as: str) -> KernelProfile:
    """The profile with what the message gives; the rest stays. 400 for what cannot be changed."""
    if message.name not in ("", model.name):
        raise invalid("name", message.name, f"{model.name}, as in the path")
    if message.HasField("replica") and message.replica != 1:
        raise invalid("replica", message.replica, "1: one instance, whose kernels grow and shrink by its policy")
    shown = profile_detail(model, folder, run_as).kernel
    for name in _SHOWN_ONLY:
        value, present = getattr(message.kernel, name), getattr(shown, name)
        if value not in ("", present):
            raise invalid(f"kernel.{name}", value, f"{present!r}: the platform decides it")
    profile = model.profile
    kernel = replace(profile.kernel, **_given(message.kernel, _KERNEL))
    return replace(
        profile,
        **_given(message, {name: name for name in ("type", "version", "schema_version")}),
        policy=replace(profile.policy, **_given(message.policy, _POLICY)),
        kernel=replace(
            kernel,
            gpu=kernel.gpu.lower(),
            environments=_pairs(message.kernel.environments) or kernel.environments,
        ),
        service_resources=_resources(message.resource_allocation.service, profile.service_resources),
        kernel_resources=_resources(message.resource_allocation.kernel, profile.kernel_resources),
        environments=_pairs(message.environments) or profile.environments,
    )


def _resource_detail(resources: ResourceRequest) -> kernels_pb2.KernelResource:
    return kernels_pb2.KernelResource(**{name: getattr(resources, key) for name, key in _RESOURCES.items()})


def _resources(message: kernels_pb2.KernelResource, present: ResourceRequest) -> ResourceRequest:
    return replace(present, **_given(message, _RESOURCES))


def _given(message: Any, names: dict[str, str]) -> dict[str, Any]:
    return {key: getattr(message, name) for name, key in names.items() if message.HasField(name)}


def _pairs(rows: Iterable[kernels_pb2.KernelEnvironment]) -> Pairs:
    return tuple((row.name, row.value) for row in rows)


def _environments(pairs: Pairs) -> list[kernels_pb2.KernelEnvironment]:
    return [kernels_pb2.KernelEnvironment(name=name, value=value) for name, value in pairs]
