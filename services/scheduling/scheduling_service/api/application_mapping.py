"""Applications and instance groups as clients read them."""

from __future__ import annotations

from dlmesh.scheduling.v1 import scheduling_pb2
from servicekit.errors import invalid
from servicekit.times import unix_milliseconds, utc_now

from scheduling_service.api.mapping import group_state
from scheduling_service.domain.application import application_id, driver_id
from scheduling_service.domain.attempt_facts import ProcessFacts
from scheduling_service.domain.instance_group import InstanceGroup, UserShare
from scheduling_service.domain.job import Job, State
from scheduling_service.usecases.instance_groups import Settings
from scheduling_service.usecases.list_applications import Application

# REST names of what only the engine can tell.
FACTS = frozenset(
    {"driver", "executors", "hosts", "coresused", "memused", "uiport", "gpumemused.total", "gpudevutil.total"}
)


def application_to_proto(application: Application, platform_user: str) -> scheduling_pb2.ApplicationDetail:
    """What is not known is left unset. Ranks run as `platform_user` where the group names nobody."""
    job, group, spec = application.job, application.group, application.job.spec
    now = utc_now()
    ended = job.ended_at or now
    updated_at_ms = unix_milliseconds(ended)
    detail = scheduling_pb2.ApplicationDetail(
        instance_group_id=job.group_id,
        id=application_id(job),
        name=spec.application_name or spec.name,
        type="BATCH",
        state=job.state.value,
        ui_port=application.ui_port,
        slots=job.current_ranks if application.is_running else 0,
        demanded_slots=spec.fewest_ranks if job.state is State.SUBMITTED else 0,
        hosts=application.hosts,
        cores_used=application.cores_used,
        memory_used_mb=application.memory_mb,
        owner=spec.owner,
        updated_at_ms=updated_at_ms,
        submitted_at_ms=unix_milliseconds(job.created_at),
        ended_at_ms=unix_milliseconds(job.ended_at),
        is_shared="false",
        run_duration_seconds=max(0.0, (ended - job.started_at).total_seconds()) if job.started_at else 0.0,
        master_sequence=job.attempt,
        model=spec.model,
        dataset=spec.dataset,
        framework=spec.framework,
        status_message=application.status_message,
        gpu_slots=application.gpu_slots,
        gpu_memory_used_mb=application.gpu_memory_mb,
        gpu_utilization=application.gpu_utilization,
        priority=spec.priority,
    )
    if group is not None:
        detail.instance_group_name = group.name
        detail.master_url = group.master_url
        detail.history_server_url = group.history_server_url
        detail.schedule_name = group.policy
        detail.master_service = group.engine
        detail.driver_execution_user = detail.executor_execution_user = group.execution_user or platform_user
    if spec.study:
        detail.tuning_name = spec.study
    if job.progress.total:
        detail.progress = job.progress.done / job.progress.total
    if application.facts is not None:
        driver, executors = application.facts.driver, application.facts.executors
        detail.driver.CopyFrom(_driver(job, driver, updated_at_ms))
        for rank, executor in enumerate(executors):
            detail.executors.append(_executor(executor, _rank_state(job, rank), updated_at_ms))
    return detail


def _driver(job: Job, facts: ProcessFacts, updated_at_ms: float) -> scheduling_pb2.DriverDetail:
    return scheduling_pb2.DriverDetail(
        id=driver_id(job),
        container_id=facts.container_id,
        state=job.state.value,
        host=facts.host,
        cores_used=facts.cores_used,
        memory_used_mb=facts.memory_mb,
        updated_at_ms=updated_at_ms,
        stdout_path=facts.stdout,
        stderr_path=facts.stderr,
    )


def _executor(facts: ProcessFacts, state: str, updated_at_ms: float) -> scheduling_pb2.ExecutorDetail:
    return scheduling_pb2.ExecutorDetail(
        id=facts.id,
        container_id=facts.container_id,
        state=state,
        host=facts.host,
        cores_used=facts.cores_used,
        memory_used_mb=facts.memory_mb,
        updated_at_ms=updated_at_ms,
        stdout_path=facts.stdout,
        stderr_path=facts.stderr,
    )


def _rank_state(job: Job, rank: int) -> str:
    """Of the newest attempt: by its exit code once that is known."""
    outcome = next((each for each in job.ranks if each.rank == rank), None)
    if outcome is not None and outcome.exit_code is not None:
        if outcome.exit_code == 0:
            return State.FINISHED.value
        return State.ERROR.value if outcome.exit_code > 0 else State.KILLED.value
    # Between two attempts nothing runs.
    return State.KILLED.value if job.state is State.SUBMITTED else job.state.value


def group_to_detail(group: InstanceGroup, platform_user: str, version: str) -> scheduling_pb2.InstanceGroupDetail:
    return scheduling_pb2.InstanceGroupDetail(
        id=group.id,
        name=group.name,
        version=version,
        master_url=group.master_url,
        execution_user=group.execution_user or platform_user,
        state=group_state(group),
        history_server_url=group.history_server_url,
    )


def group_to_settings(group: InstanceGroup) -> scheduling_pb2.InstanceGroupSettings:
    return scheduling_pb2.InstanceGroupSettings(
        id=group.id,
        name=group.name,
        engine=group.engine,
        master_url=group.master_url,
        history_server_url=group.history_server_url,
        hosts=group.hosts,
        slots_per_host=group.slots_per_host,
        gpus_per_host=group.gpus_per_host,
        policy=group.policy,
        execution_user=group.execution_user,
        max_slots_per_user=group.max_slots_per_user,
        state=group_state(group),
        engine_options=dict(group.engine_options),
    )


def settings_from_proto(settings: scheduling_pb2.InstanceGroupSettings) -> Settings:
    """400 when the state is none."""
    given = {
        field.name: value for field, value in settings.ListFields() if field.name not in {"state", "engine_options"}
    }
    return Settings(
        **given,
        is_started=_is_started(settings.state) if settings.HasField("state") else None,
        engine_options=dict(settings.engine_options),
    )


def share_to_proto(share: UserShare) -> scheduling_pb2.UserShare:
    return scheduling_pb2.UserShare(user=share.user, weight=share.weight, max_slots=share.max_slots)


def share_from_proto(user: str, share: scheduling_pb2.UserShare) -> UserShare:
    """400 when the share names somebody else than the path."""
    if share.HasField("user") and share.user != user:
        raise invalid("user", share.user, f"{user}, as the path says, or nothing")
    weight = share.weight if share.HasField("weight") else 1.0
    return UserShare(user, weight, share.max_slots)


def _is_started(word: str) -> bool:
    if word not in {"STARTED", "STOPPED"}:
        raise invalid("state", word, ("STARTED", "STOPPED"))
    return word == "STARTED"
