"""How the kernels of a model run: when they are started and ended, what they are given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from servicekit.errors import invalid, sendable

from inference_service.kernels.domain.pools import NO_LIMIT, GpuUse, KernelLimits, PoolPolicy

MAX_PAIRS, MAX_KEY_LENGTH, MAX_VALUE_LENGTH = 200, 256, 64 * 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the loader, the interpreter and the platform itself read before the kernel is confined.
_RESERVED_VARIABLES = re.compile(r"(LD_|PYTHON|DLMESH_|GCONV_|MALLOC_).*", re.IGNORECASE)
_UMASK = re.compile(r"0?[0-7]{3}")
_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")
_RESOURCES = ("ncpus", "ncpus_limit", "mem", "mem_limit")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KernelPolicy:
    """When kernels are started and ended. NO_LIMIT (-1) where the field says so."""

    name: str = ""
    schedule_interval_milliseconds: int = 200
    kernel_min: int = 1
    # NO_LIMIT: as many as this machine may have.
    kernel_max: int = 2
    kernel_delay_release_seconds: int = 60
    # NO_LIMIT: a batch may take as long as it likes.
    task_execution_timeout_seconds: int = 60
    task_batch_size: int = 8
    task_pipe_size: int = 1
    stream_number_per_group: int = 1
    stream_discard_slow_tasks: bool = False

    def checked(self) -> KernelPolicy:
        """This policy; 400 naming the first field that is out of range."""
        for name, value, least, most in (
            ("schedule_intervel", self.schedule_interval_milliseconds, 10, 3_600_000),
            ("kernel_min", self.kernel_min, 0, 1000),
            ("kernel_delay_release_time", self.kernel_delay_release_seconds, 0, 7 * 24 * 3600),
            ("task_batch_size", self.task_batch_size, 1, 1024),
            ("task_pipe_size", self.task_pipe_size, 1, 64),
            ("stream_number_per_group", self.stream_number_per_group, 1, 1024),
        ):
            if not least <= value <= most:
                raise invalid(f"policy.{name}", value, f"a whole number from {least} to {most}")
        least = max(1, self.kernel_min)
        if self.kernel_max != NO_LIMIT and not least <= self.kernel_max <= 1000:
            allowed = f"a whole number from {least} to 1000 (kernel_min is {self.kernel_min}), or -1 for no limit"
            raise invalid("policy.kernel_max", self.kernel_max, allowed)
        if self.task_execution_timeout_seconds != NO_LIMIT and not 1 <= self.task_execution_timeout_seconds <= 86400:
            allowed = "seconds from 1 to 86400, or -1 for no limit"
            raise invalid("policy.task_execution_timeout", self.task_execution_timeout_seconds, allowed)
        check_text("policy.name", self.name)
        return self

    def of_pool(self, connection_timeout_seconds: int) -> PoolPolicy:
        """What the pool is told."""
        return PoolPolicy(
            kernel_min=self.kernel_min,
            kernel_max=self.kernel_max,
            kernel_delay_release_seconds=self.kernel_delay_release_seconds,
            task_batch_size=self.task_batch_size,
            task_pipe_size=self.task_pipe_size,
            task_execution_timeout_seconds=self.task_execution_timeout_seconds,
            connection_timeout_seconds=connection_timeout_seconds,
            schedule_interval_seconds=self.schedule_interval_milliseconds / 1000,
        )


@dataclass(frozen=True)
class KernelSettings:
    """The process of a kernel."""

    connection_timeout_seconds: int = 60
    umask: str = "077"
    gpu: str = GpuUse.NO.value
    environments: Pairs = ()

    def checked(self) -> KernelSettings:
        """These settings; 400 naming the first field that may not be so."""
        if not 1 <= self.connection_timeout_seconds <= 3600:
            raise invalid("kernel.connection_timeout", self.connection_timeout_seconds, "seconds from 1 to 3600")
        check_umask("kernel.umask", self.umask)
        gpu_uses = [use.value for use in GpuUse]
        if self.gpu not in gpu_uses:
            raise invalid("kernel.gpu", self.gpu, gpu_uses)
        check_environments("kernel.envs", self.environments)
        return self


@dataclass(frozen=True)
class ResourceRequest:
    """A place and an amount, kept as they were given; `resource_requirement` of the kernel's is what counts."""

    type: str = ""
    resource_group: str = ""
    consumer: str = ""
    resource_requirement: str = ""


@dataclass(frozen=True)
class KernelProfile:
    """All of it."""

    type: str = ""
    version: str = ""
    schema_version: str = "1"
    policy: KernelPolicy = KernelPolicy()
    kernel: KernelSettings = KernelSettings()
    service_resources: ResourceRequest = ResourceRequest()
    kernel_resources: ResourceRequest = ResourceRequest()
    environments: Pairs = field(default=())

    def checked(self) -> KernelProfile:
        """This profile; 400 naming the first field that may not be so, in its REST spelling."""
        for name, text in (("type", self.type), ("version", self.version), ("schema_version", self.schema_version)):
            check_text(name, text)
        for owner, resources in (("service", self.service_resources), ("kernel", self.kernel_resources)):
            for name, text in (
                ("type", resources.type),
                ("resource_group", resources.resource_group),
                ("consumer", resources.consumer),
                ("resreq", resources.resource_requirement),
            ):
                check_text(f"resource_allocation.{owner}.{name}", text)
        self.limits("resource_allocation.kernel.resreq")
        check_environments("envs", self.environments)
        self.policy.checked()
        self.kernel.checked()
        return self

    def limits(self, field_name: str = "resreq") -> KernelLimits:
        """Of one kernel."""
        return read_limits(field_name, self.kernel_resources.resource_requirement)

    def with_requirement(self, text: str) -> KernelProfile:
        """The same with other resources of the kernel."""
        return replace(self, kernel_resources=replace(self.kernel_resources, resource_requirement=text))

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> KernelProfile:
        """What `as_json` made."""
        kernel = {**value["kernel"], "environments": as_pairs(value["kernel"]["environments"])}
        return cls(
            type=value["type"],
            version=value["version"],
            schema_version=value["schema_version"],
            policy=KernelPolicy(**value["policy"]),
            kernel=KernelSettings(**kernel),
            service_resources=ResourceRequest(**value["service_resources"]),
            kernel_resources=ResourceRequest(**value["kernel_resources"]),
            environments=as_pairs(value["environments"]),
        )


def read_limits(field_name: str, text: str) -> KernelLimits:
    """Of `ncpus=0.5,ncpus_limit=2,mem=1024,mem_limit=4096` (MiB), each of which may be left out. 400 naming the field.

    What is asked for without a limit is not limited: nothing on this machine is set aside for it.
    """
    allowed = "amounts as ncpus=0.5,ncpus_limit=2,mem=1024,mem_limit=4096 (MiB), no limit below what is asked for"
    amounts: dict[str, float] = {}
    for item in (item.strip() for item in text.split(",")):
        if not item:
            continue
        name, _, amount = (part.strip() for part in item.partition("="))
        if name not in _RESOURCES or name in amounts or not _AMOUNT.fullmatch(amount) or float(amount) <= 0:
            raise invalid(field_name, text, allowed)
        amounts[name] = float(amount)
    for name in ("ncpus", "mem"):
        if amounts.get(f"{name}_limit", amounts.get(name, 0)) < amounts.get(name, 0):
            raise invalid(field_name, text, allowed)
    return KernelLimits(amounts.get("ncpus_limit", 0.0), int(amounts.get("mem_limit", 0) * 1024**2))


def as_pairs(rows: Iterable[Iterable[str]]) -> Pairs:
    """Rows of two texts as they come out of JSON."""
    return tuple((key, value) for key, value in rows)


def check_text(field_name: str, text: str, most: int = 1024) -> str:
    """`text` when it is printable and short; 400 naming `field_name`."""
    if len(text) > most or any(ord(character) < 32 or "\ud800" <= character <= "\udfff" for character in text):
        raise invalid(field_name, text, f"a text of at most {most} characters without control characters")
    return text


def check_umask(field_name: str, text: str) -> str:
    """`text` when it is an octal mask; 400 naming `field_name`."""
    if not _UMASK.fullmatch(text):
        raise invalid(field_name, text, "three octal digits, as 022")
    return text


def check_attributes(field_name: str, pairs: Pairs) -> Pairs:
    """`pairs` when their keys are short, and there are not too many; 400 naming `field_name`."""
    if len(pairs) > MAX_PAIRS:
        raise invalid(field_name, f"({len(pairs)} of them)", f"at most {MAX_PAIRS} pairs")
    for key, value in pairs:
        if not key or len(key) > MAX_KEY_LENGTH or "\0" in key:
            raise invalid(f"{field_name}, key", key, f"1 to {MAX_KEY_LENGTH} characters")
        if len(value) > MAX_VALUE_LENGTH or "\0" in value or sendable(key + value) != key + value:
            raise invalid(
                f"{field_name}, {key}", value, f"a text of at most {MAX_VALUE_LENGTH} characters in UTF-8 without NUL"
            )
    return pairs


def check_environments(field_name: str, pairs: Pairs) -> Pairs:
    """As `check_attributes`, for variables of a process."""
    for name, _ in pairs:
        if not _VARIABLE.fullmatch(name) or _RESERVED_VARIABLES.fullmatch(name):
            allowed = "letters, digits and '_', and none that begins with LD_, PYTHON, DLMESH_, GCONV_ or MALLOC_"
            raise invalid(f"{field_name}, name", name, allowed)
    return check_attributes(field_name, pairs)
