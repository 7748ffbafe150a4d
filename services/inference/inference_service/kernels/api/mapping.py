"""Messages to requests, kernel models to messages: both ways side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmesh.inference.v1 import inference_pb2, kernels_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from servicekit.errors import invalid
from servicekit.multipart import Part
from servicekit.times import format_time

from inference_service.kernels.api.answers import take_apart
from inference_service.kernels.domain.models import MODEL_FOLDER, KernelModel
from inference_service.kernels.domain.pools import PoolStatistics
from inference_service.kernels.domain.profiles import Pairs
from inference_service.kernels.usecases.change_model import KernelChanges
from inference_service.kernels.usecases.publish_model import PublishRequest
from inference_service.usecases.ports import Upload

INVOKE_PATH = "/dlim/v1/inference/"
STREAM_METHOD = "/dlmesh.inference.v1.KernelStreamService/StreamKernelTasks"
MAX_INT32 = 2**31 - 1
# What is parsed to see whether it is JSON: it holds everybody else up. Of more than that the ends are looked at.
MAX_CHECKED_CHARACTERS, ENDS_CHARACTERS = 64 * 1024, 1024
# Parameters of a session that some clients send along as fields.
_IGNORED = ("csrftoken",)
# Both spellings of what may be changed, as fields of the message.
_TAG = ("tag", "version")
_REQUIREMENT = ("resource_requirement", "reference_resource_requirement")
_UMASK = ("umask", "reference_umask")
_ENVIRONMENTS = ("environments", "reference_environments")
_INSTANCE_MIN = ("instance_min", "reference_instance_min")
_INSTANCE_MAX = ("instance_max", "reference_instance_max")
# And of what may not.
_FIXED = (
    ("name",),
    ("type",),
    ("schema_version",),
    ("model_path",),
    ("runtime", "reference_kernel_type"),
    ("kernel_path", "reference_kernel_path"),
)


@dataclass(frozen=True)
class Addresses:
    """Where clients find the platform, and models their files."""

    public_url: str
    public_address: str
    folder: Path

    def of_files(self, model: KernelModel) -> Path:
        return self.folder / model.uid


def publish_request(message: kernels_pb2.RegisterKernelModelRequest, name: str = "") -> PublishRequest:
    """`name` is that of the path, which a name in the body must agree with."""
    if name and message.name not in ("", name):
        raise invalid("name", message.name, f"{name}, as in the path")
    return PublishRequest(
        name=name or message.name,
        model_path=message.model_path,
        kernel_path=message.kernel_path,
        weight_path=message.weight_path,
        runtime=message.runtime,
        attributes=message.attributes,
        environments=message.environments,
        type=message.type,
    )


def uploads(parts: Sequence[Part], spool: Path) -> list[Upload]:
    """Every part is a file called as its filename says, else as the part is; small ones are written to `spool`."""
    found = []
    for index, part in enumerate(parts):
        if part.name in _IGNORED:
            continue
        if part.path is None:
            part.path = spool / f"small-{index}"
            part.path.write_bytes(part.value or b"")
        found.append(Upload(part.filename or part.name or f"part{index}", part.path))
    return found


def model_detail(model: KernelModel, addresses: Addresses) -> kernels_pb2.KernelModel:
    """Both spellings of everything."""
    folder, policy = addresses.of_files(model), model.profile.policy
    requirement, umask = model.profile.kernel_resources.resource_requirement, model.profile.kernel.umask
    environments, updated_at = _environments(model.environments), format_time(model.updated_at)
    return kernels_pb2.KernelModel(
        schema_version=model.schema_version,
        name=model.name,
        type=model.type,
        tag=model.tag,
        version=model.tag,
        runtime=model.runtime,
        reference_kernel_type=model.runtime,
        model_path=str(folder / MODEL_FOLDER),
        weight_path=str(folder / model.weights) if model.weights else "",
        kernel_path=model.kernel_path,
        reference_kernel_path=model.kernel_path,
        creator=model.owner,
        attributes=_attributes(model.attributes),
        resource_requirement=requirement,
        reference_resource_requirement=requirement,
        umask=umask,
        reference_umask=umask,
        environments=environments,
        reference_environments=environments,
        instance_min=policy.kernel_min,
        reference_instance_min=policy.kernel_min,
        instance_max=policy.kernel_max,
        reference_instance_max=policy.kernel_max,
        service_uri=f"{addresses.public_url}{INVOKE_PATH}{model.name}",
        size=min(model.size_bytes, MAX_INT32),
        created_at=format_time(model.created_at),
        updated_at=updated_at,
        reference_updated_at=updated_at,
        state=str(model.state),
        status_message=model.status_message,
    )


def changes(message: kernels_pb2.KernelModel, model: KernelModel, addresses: Addresses) -> KernelChanges:
    """What a client asks to be different. Clients send back all that they were shown: what is as it was asks for
    nothing, in either spelling. 400 for what cannot be changed."""
    shown = model_detail(model, addresses)
    for names in _FIXED:
        value = _different(message, shown, names)
        if value is not None:
            field, present = _rest_name(message, names[0]), getattr(shown, names[0])
            raise invalid(field, value, f"{present!r}: it stays as it was published")
    attributes = _different(message, shown, ("attributes",))
    environments = _different(message, shown, _ENVIRONMENTS)
    return KernelChanges(
        tag=_different(message, shown, _TAG),
        weight_path=_different(message, shown, ("weight_path",)),
        attributes=None if attributes is None else tuple((one.key, one.value) for one in attributes),
        environments=None if environments is None else tuple((one.name, one.value) for one in environments),
        resource_requirement=_different(message, shown, _REQUIREMENT),
        umask=_different(message, shown, _UMASK),
        instance_min=_different(message, shown, _INSTANCE_MIN),
        instance_max=_different(message, shown, _INSTANCE_MAX),
    )


def instances(model: KernelModel, statistics: PoolStatistics) -> kernels_pb2.KernelInstances:
    """One daemon, this service, while there are kernels or tasks."""
    state = str(model.state)
    instance = kernels_pb2.KernelInstance(name=model.name, state=state)
    if statistics != PoolStatistics() or model.state.runs:
        instance.instances.add(
            id=model.uid,
            clients=statistics.clients,
            pending_tasks=statistics.pending,
            requests_per_second=_whole(statistics.requests_per_second),
            bytes_per_second=_whole(statistics.input_bytes_per_second),
            kernels=[
                kernels_pb2.KernelContainer(
                    id=kernel.id,
                    host=kernel.host,
                    status=kernel.status,
                    total_tasks=_whole(kernel.total),
                    running_tasks=kernel.running,
                    finished_tasks=_whole(kernel.finished),
                    failed_tasks=_whole(kernel.failed),
                )
                for kernel in statistics.kernels
            ],
        )
    return kernels_pb2.KernelInstances(name=model.name, state=state, instance=instance)


def trial_input(message: kernels_pb2.TestKernelModelRequest) -> str:
    """What a kernel finds as its input, in JSON: the fields under their REST names."""
    if not message.data_values:
        raise invalid("data_value", "", 'one pair or more, as [{"key": "a.png", "value": "<base64>"}]')
    return json.dumps(
        {
            "action_type": message.action_type,
            "data_type": message.data_type,
            "data_value": [{"key": one.key, "value": one.value} for one in message.data_values],
            "attributes": [{"key": one.key, "value": one.value} for one in message.attributes],
            "user": message.user,
        },
        ensure_ascii=False,
    )


def trial_answer(name: str, output: str) -> kernels_pb2.TestKernelModelResponse:
    """The kernel's output, taken apart where it can be."""
    results = take_apart(output)
    if results is None:
        return kernels_pb2.TestKernelModelResponse(model_name=name, is_resolved=False, output=output)
    messages = [json_format.ParseDict(one, inference_pb2.PredictionResult()) for one in results]
    return kernels_pb2.TestKernelModelResponse(model_name=name, is_resolved=True, results=messages)


def task_input(body: HttpBody) -> str:
    """400 unless it is text: kernels are given texts."""
    try:
        return body.data.decode()
    except UnicodeDecodeError as error:
        raise invalid("body", "(binary)", "UTF-8 text, as JSON with base64 in it") from error


def task_output(output: str) -> HttpBody:
    """The output as it is; JSON where it is that, or is long and begins and ends so."""
    kind = "application/json" if _is_json(output) else "text/plain; charset=utf-8"
    return HttpBody(content_type=kind, data=output.encode())


def _is_json(output: str) -> bool:
    if len(output) > MAX_CHECKED_CHARACTERS:
        return output[:ENDS_CHARACTERS].lstrip()[:1] + output[-ENDS_CHARACTERS:].rstrip()[-1:] in ("{}", "[]")
    try:
        json.loads(output)
    except (ValueError, RecursionError):
        return False
    return True


def _different(message: Any, shown: Any, names: tuple[str, ...]) -> Any:
    """What `message` has under one of the names that is not as it is shown, None when there is nothing; 400 for two
    spellings that say different things."""
    found: list[Any] = []
    for name in names:
        value, present = getattr(message, name), getattr(shown, name)
        has_presence = message.DESCRIPTOR.fields_by_name[name].has_presence
        is_given = message.HasField(name) if has_presence else bool(value)
        if is_given and value != present and value not in found:
            found.append(value)
    if len(found) > 1:
        spellings = [_rest_name(message, name) for name in names]
        raise invalid(spellings[0], found[0], f"the same as {spellings[1]} or nothing there")
    return found[0] if found else None


def _rest_name(message: Any, name: str) -> str:
    return str(message.DESCRIPTOR.fields_by_name[name].json_name)


def _attributes(pairs: Pairs) -> list[kernels_pb2.KernelAttribute]:
    return [kernels_pb2.KernelAttribute(key=key, value=value) for key, value in pairs]


def _environments(pairs: Pairs) -> list[kernels_pb2.KernelEnvironment]:
    return [kernels_pb2.KernelEnvironment(name=name, value=value) for name, value in pairs]


def _whole(number: float) -> int:
    return min(round(number), MAX_INT32)
