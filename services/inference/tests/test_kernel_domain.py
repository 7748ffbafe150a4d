"""Models with a kernel: moves, profiles, model.json and answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inference_service.kernels.api.answers import MAX_CHARACTERS, take_apart
from inference_service.kernels.api.mapping import MAX_CHECKED_CHARACTERS, task_output
from inference_service.kernels.domain.manifests import read_manifest, read_pairs_text
from inference_service.kernels.domain.models import KernelModel, KernelState
from inference_service.kernels.domain.pools import GpuUse, KernelLimits
from inference_service.kernels.domain.profiles import (
    KernelPolicy,
    KernelProfile,
    KernelSettings,
    ResourceRequest,
    read_limits,
)
from servicekit.errors import Code, ServiceError
from servicekit.times import utc_now


def make_model(state: KernelState = KernelState.STOPPED, **facts: Any) -> KernelModel:
    now = utc_now()
    values = {"uid": "u1", "name": "pong", "owner": "alice", "created_at": now, "updated_at": now}
    return KernelModel(**{**values, "kernel_path": "kernel.py", "state": state, **facts})


@pytest.mark.parametrize(
    ("before", "after", "is_change"),
    [
        (KernelState.STOPPED, KernelState.STARTING, True),
        (KernelState.FAILED, KernelState.STARTING, True),
        (KernelState.STARTING, KernelState.STARTING, False),
        (KernelState.STARTED, KernelState.STARTED, False),
    ],
)
def test_starting(before: KernelState, after: KernelState, is_change: bool) -> None:
    model = make_model(before, status_message="old words")
    assert (model.start(), model.state) == (is_change, after)
    assert model.status_message == ("" if is_change else "old words")


@pytest.mark.parametrize(
    ("before", "after", "is_change"),
    [
        (KernelState.STOPPED, KernelState.STOPPED, False),
        (KernelState.STOPPING, KernelState.STOPPING, False),
        (KernelState.FAILED, KernelState.STOPPED, True),
        (KernelState.STARTING, KernelState.STOPPING, True),
        (KernelState.STARTED, KernelState.STOPPING, True),
    ],
)
def test_stopping(before: KernelState, after: KernelState, is_change: bool) -> None:
    model = make_model(before)
    assert (model.stop(), model.state) == (is_change, after)


def test_one_that_is_being_stopped_cannot_be_started() -> None:
    with pytest.raises(ServiceError, match="'pong' is STOPPING") as caught:
        make_model(KernelState.STOPPING).start()
    assert caught.value.code is Code.ABORTED


def test_moves_of_the_loop() -> None:
    model = make_model(KernelState.STARTING)
    model.started()
    model.fail("x" * 5000 + "the last words")
    assert model.state is KernelState.FAILED
    assert model.status_message.endswith("the last words")
    assert len(model.status_message) == 2000
    for move in (model.started, model.stopped, lambda: model.fail("again")):
        with pytest.raises(ValueError, match="cannot go from FAILED"):
            move()
    model = make_model(KernelState.STOPPING)
    model.stopped()
    assert model.state is KernelState.STOPPED


@pytest.mark.parametrize("state", list(KernelState))
def test_what_runs_is_neither_changed_nor_deleted_and_only_what_started_takes_tasks(state: KernelState) -> None:
    model = make_model(state)
    for check, is_allowed in (
        (model.require_changeable, state in (KernelState.STOPPED, KernelState.FAILED)),
        (model.require_started, state is KernelState.STARTED),
    ):
        if is_allowed:
            check()
        else:
            with pytest.raises(ServiceError) as caught:
                check()
            assert caught.value.code is Code.ABORTED
            assert str(state) in caught.value.message
            assert state is not KernelState.STOPPING or "stop it first" not in caught.value.message


def test_what_a_pool_is_told() -> None:
    profile = replace(
        KernelProfile(),
        kernel=KernelSettings(gpu="shared", umask="027", environments=(("A", "of the kernel"),)),
        environments=(("A", "of the profile"), ("B", "of the profile")),
        kernel_resources=ResourceRequest(resource_requirement="ncpus=1,ncpus_limit=2,mem=10,mem_limit=20"),
    )
    model = make_model(
        KernelState.STARTED,
        weights="model/w.bin",
        attributes=(("threshold", "0.5"),),
        environments=(("B", "of the model"), ("C", "of the model")),
        profile=profile,
    )
    launch = model.launch(Path("/k/u1"), "ann")
    assert launch.folder == Path("/k/u1/model")
    assert launch.environment == {"A": "of the kernel", "B": "of the profile", "C": "of the model"}
    assert (launch.gpu, launch.umask, launch.execution_user) == (GpuUse.SHARED, 0o027, "ann")
    assert launch.limits == KernelLimits(2.0, 20 * 1024**2)
    assert launch.is_proven
    description = json.loads(json.dumps(launch.description))
    assert (description["model_path"], description["weight_path"]) == ("/k/u1/model", "/k/u1/model/w.bin")
    assert description["attributes"] == [{"key": "threshold", "value": "0.5"}]
    assert make_model().description(Path("/k"))["weight_path"] == ""


def test_a_profile_comes_back_from_json_as_it_was() -> None:
    profile = replace(
        KernelProfile(),
        policy=KernelPolicy(kernel_max=-1, task_execution_timeout_seconds=-1, stream_discard_slow_tasks=True),
        kernel=KernelSettings(environments=(("A", "b"),)),
        environments=(("C", "d"),),
    ).checked()
    assert KernelProfile.from_json(json.loads(json.dumps(profile.as_json()))) == profile


@pytest.mark.parametrize(
    ("field", "profile"),
    [
        ("policy.kernel_min", KernelProfile(policy=KernelPolicy(kernel_min=-1))),
        ("policy.kernel_max", KernelProfile(policy=KernelPolicy(kernel_min=3, kernel_max=2))),
        ("policy.kernel_max", KernelProfile(policy=KernelPolicy(kernel_min=0, kernel_max=0))),
        ("policy.kernel_max", KernelProfile(policy=KernelPolicy(kernel_max=-2))),
        ("policy.task_execution_timeout", KernelProfile(policy=KernelPolicy(task_execution_timeout_seconds=0))),
        ("policy.task_batch_size", KernelProfile(policy=KernelPolicy(task_batch_size=0))),
        ("policy.task_pipe_size", KernelProfile(policy=KernelPolicy(task_pipe_size=65))),
        ("policy.kernel_delay_release_time", KernelProfile(policy=KernelPolicy(kernel_delay_release_seconds=-1))),
        ("policy.schedule_intervel", KernelProfile(policy=KernelPolicy(schedule_interval_milliseconds=1))),
        ("policy.stream_number_per_group", KernelProfile(policy=KernelPolicy(stream_number_per_group=0))),
        ("kernel.connection_timeout", KernelProfile(kernel=KernelSettings(connection_timeout_seconds=0))),
        ("kernel.umask", KernelProfile(kernel=KernelSettings(umask="8"))),
        ("kernel.gpu", KernelProfile(kernel=KernelSettings(gpu="two"))),
        ("kernel.envs, name", KernelProfile(kernel=KernelSettings(environments=(("LD_PRELOAD", "x"),)))),
        ("envs, name", KernelProfile(environments=(("PYTHONPATH", "x"),))),
        ("envs, name", KernelProfile(environments=(("a b", "x"),))),
        ("envs", KernelProfile(environments=tuple((f"A{number}", "") for number in range(201)))),
        (
            "resource_allocation.kernel.resreq",
            KernelProfile(kernel_resources=ResourceRequest(resource_requirement="cores=2")),
        ),
        ("type", KernelProfile(type="a\nb")),
    ],
)
def test_profiles_out_of_range_name_the_field(field: str, profile: KernelProfile) -> None:
    with pytest.raises(ServiceError) as caught:
        profile.checked()
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == field


@pytest.mark.parametrize(
    "text", ["ncpus", "ncpus=0", "mem=-1", "mem=1e3", "ncpus=2,ncpus_limit=1", "mem=1,mem=2", "x=1"]
)
def test_resources_that_make_no_sense(text: str) -> None:
    with pytest.raises(ServiceError, match="resreq"):
        read_limits("resreq", text)


def test_resources() -> None:
    assert read_limits("resreq", "") == read_limits("resreq", "ncpus=1,mem=5") == KernelLimits()
    assert read_limits("resreq", " ncpus_limit = 1.5 , mem_limit=1,") == KernelLimits(1.5, 1024**2)


def test_both_spellings_of_model_json() -> None:
    old = read_manifest(
        b'{"name": "n", "mc_path": "k.py", "mc_environments": [{"name": "A", "value": 1}], "mc_instance_min": 2,'
        b' "attributes": [{"key": "t", "value": true}], "schema_version": 1, "started_at": "whenever", "tag": null}'
    )
    new = read_manifest(
        b'{"name": "n", "kernel_path": "k.py", "mk_environments": {"A": "1"}, "mk_instance_min": 2,'
        b' "attributes": {"t": "true"}, "schema_version": "1"}'
    )
    assert old == new
    assert (new.kernel_path, new.environments, new.attributes) == ("k.py", (("A", "1"),), (("t", "true"),))
    assert (new.instance_min, new.instance_max, new.schema_version) == (2, None, "1")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("model.json", b"{"),
        ("model.json", b"[]"),
        ("model.json", b"\xff"),
        ("model.json", b"[" * 200_000),
        ("model.json", b" " * 1_100_000),
        ("model.json, tag", b'{"tag": {}}'),
        ("model.json, name", b'{"name": "a\\u0000"}'),
        ("model.json, name", b'{"name": "\\ud800"}'),
        ("model.json, attributes", b'{"attributes": "x"}'),
        ("model.json, attributes", b'{"attributes": [{"value": "x"}]}'),
        ("model.json, attributes", b'{"attributes": [{"key": "a", "value": []}]}'),
        ("model.json, attributes", b'{"attributes": [{"key": "a"}, {"key": "a"}]}'),
        ("model.json, mk_environments, name", b'{"mk_environments": {"DLMESH_X": "1"}}'),
        ("model.json, mk_instance_min", b'{"mk_instance_min": true}'),
        ("model.json, mk_umask", b'{"mk_umask": "999"}'),
        ("model.json, mk_resource_req", b'{"mk_resource_req": "all"}'),
    ],
)
def test_a_model_json_that_cannot_be_read_names_the_key(field: str, text: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        read_manifest(text)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == field
    assert len(caught.value.message) < 1000


def test_pairs_as_text() -> None:
    assert read_pairs_text("mcenv", " ", "name") == ()
    assert read_pairs_text("mcenv", '[{"name": "A", "value": "b"}]', "name") == (("A", "b"),)
    for text in ("A=b", "[1]", "7", "null", '[{"key": "A"}]', "[" * 200_000):
        with pytest.raises(ServiceError, match="mcenv"):
            read_pairs_text("mcenv", text, "name")


def test_results_are_taken_apart() -> None:
    sample = {"sampleId": "a.png", "isImage": True, "results": [{"label": 3, "prob": "0.5", "junk": 1}]}
    [found] = take_apart(json.dumps({"type": "classification", "classificationResults": [sample], "id": 4})) or [{}]
    expected = {"sampleId": "a.png", "isImage": True, "results": [{"label": "3", "prob": 0.5}]}
    assert found == {"type": "classification", "classificationResults": [expected]}

    box = {"results": [{"label": "cat", "prob": 1, "bbox": [1, 2, 3, 4]}, {"label": "dog", "prob": 0, "bbox": "1 2"}]}
    [first, second] = take_apart(json.dumps([{"detResults": [box]}, {"detResults": []}])) or [{}, {}]
    boxes = [each["bbox"] for each in first["detResults"][0]["results"]]
    assert (boxes, second) == (["[1.0, 2.0, 3.0, 4.0]", "1 2"], {"detResults": []})

    pair = {"sampleId1": "a", "sampleId2": "b", "distance": 0.5, "isSimilar": False}
    assert take_apart(json.dumps({"comparisonResults": [pair]})) == [{"comparisonResults": [pair]}]


@pytest.mark.parametrize(
    "output",
    [
        "pong",
        "",
        "[]",
        "{}",
        "3",
        "[" * 200_000,
        '{"outputs": [{"name": "p", "shape": [1], "datatype": "FP32", "data": [1]}]}',
        '{"classificationResults": {}}',
        '{"classificationResults": [{"results": [{"label": "a"}]}]}',
        '{"classificationResults": [{"results": [{"label": "a", "prob": NaN}]}]}',
        '{"classificationResults": [{"results": [{"label": "\\ud800", "prob": 1}]}]}',
        '{"classificationResults": [{"sampleId": 3}]}',
        '{"detResults": [{"results": [{"label": "a", "prob": 1, "bbox": ["x"]}]}]}',
        '{"classificationResults": [{"results": [{"label": "a", "prob": 1' + "0" * 400 + "}]}]}",
        '[{"classificationResults": []}, 3]',
    ],
)
def test_what_is_no_result_is_not_taken_apart(output: str) -> None:
    assert take_apart(output) is None


def test_nothing_long_is_parsed_for_everybody_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(len(text)) or loads(text))
    kinds = {
        "[" + "[]," * 3_000_000 + "[]]": "application/json",
        ' {"a": "' + "x" * 100_000 + '"}\n': "application/json",
        "{" + "x" * 100_000: "text/plain; charset=utf-8",
        '{"a": 1}': "application/json",
        "{a}": "text/plain; charset=utf-8",
    }
    assert {output: task_output(output).content_type for output in kinds} == kinds
    [sample] = json.loads('[{"classificationResults": []}]')
    text = json.dumps([{**sample, "type": "x" * MAX_CHARACTERS}])
    assert take_apart(text) is None
    assert max(parsed) <= MAX_CHECKED_CHARACTERS
