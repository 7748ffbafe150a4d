"""What the scheduling service answers of trials, as studies take it: the client against a played service."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from dlmesh.scheduling.v1 import trials_pb2, trials_pb2_grpc
from servicekit.channels import Channels
from servicekit.errors import Code, ServiceError
from servicekit.server import Application
from testkit.services import running, settings_for
from tuning_service.clients import trials as client_module
from tuning_service.clients.trials import ExecTrials
from tuning_service.domain.plan import Objective, Plan
from tuning_service.domain.results import Results
from tuning_service.domain.space import Space
from tuning_service.domain.study import Trial

PLAN = Plan(Space(()), (), "Random", {}, (Objective("loss", False),))
TRIALS = [Trial("s", number, f"t{number}", {}) for number in range(4)]


class PlayedPrograms(trials_pb2_grpc.TrialServiceServicer):
    """Answers one trial a call, and none after `limit` calls; `gone` ones are unknown."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.gone: set[str] = set()
        self.calls = 0

    async def ReadTrialResults(self, request: Any, context: Any) -> trials_pb2.ReadTrialResultsResponse:
        if self.calls == self.limit:
            await context.abort(grpc.StatusCode.INTERNAL, "no more")
        self.calls += 1
        first, *unread = [task_id for task_id in request.task_ids if task_id not in self.gone]
        written = trials_pb2.TrialResults(task_id=first, text=f'[{{"loss": {first[1:]}}}]')
        return trials_pb2.ReadTrialResultsResponse(results=[written], unread_task_ids=unread)


@pytest.fixture
def played() -> PlayedPrograms:
    return PlayedPrograms()


@pytest.fixture
async def programs(tmp_path: Path, played: PlayedPrograms) -> AsyncIterator[ExecTrials]:
    add = trials_pb2_grpc.add_TrialServiceServicer_to_server
    application = Application("scheduling", [(add, played, "dlmesh.scheduling.v1.TrialService")])
    async with running(application, settings_for("scheduling", tmp_path)) as client:
        channels = Channels(settings_for("tuning", tmp_path, peers={"scheduling": f"127.0.0.1:{client.port}"}))
        yield ExecTrials(channels)
        await channels.close()


async def test_all_that_had_no_room_is_asked_for_and_what_is_gone_has_no_value(
    programs: ExecTrials, played: PlayedPrograms
) -> None:
    played.gone = {"t2"}
    found = await programs.results(PLAN, TRIALS, have_ended=True)
    assert {uid: one.values for uid, one in found.items()} == {"t0": (0.0,), "t1": (1.0,), "t2": (), "t3": (3.0,)}
    assert found["t2"].complaint == "its task was deleted"


async def test_what_is_known_counts_when_the_rest_cannot_be_had(programs: ExecTrials, played: PlayedPrograms) -> None:
    played.limit = 2
    assert set(await programs.results(PLAN, TRIALS, have_ended=True)) == {"t0", "t1"}
    # Nothing at all is a reason to say so.
    with pytest.raises(ServiceError) as caught:
        await programs.results(PLAN, TRIALS, have_ended=True)
    assert caught.value.code is Code.INTERNAL


async def test_what_was_found_in_some_time_is_saved_before_more_is_read(
    programs: ExecTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "READ_SECONDS", 0.0)
    assert set(await programs.results(PLAN, TRIALS, have_ended=True)) == {"t0"}
    assert set(await programs.results(PLAN, TRIALS, have_ended=False)) == {"t0", "t1", "t2", "t3"}


async def test_files_are_read_beside_the_loop(programs: ExecTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noted(text: str, objectives: Any) -> Results:
        threads.append(threading.current_thread())
        return Results((0.5,))

    monkeypatch.setattr(client_module, "read_results", noted)
    assert len(await programs.results(PLAN, TRIALS, have_ended=True)) == len(threads) == 4
    assert threading.main_thread() not in threads
