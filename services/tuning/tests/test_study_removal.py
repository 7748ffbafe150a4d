"""What is deleted goes whole, and what belonged to a model that has gone goes with it; on every supported database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from servicekit.errors import ServiceError, not_found
from studies_room import PlayedRunner, StudiesRoom, request_of
from tuning_service.domain.study import Kind, Status, Trial, TrialStatus
from tuning_service.storage.study_folders import DiskStudyFolders
from tuning_service.usecases.ports import TrialPage
from tuning_service.usecases.remove_orphans import RemoveOrphans
from tuning_service.usecases.remove_studies import TRIALS_AT_ONCE, RemoveStudies


class PlayedModels:
    """`tunings.Models` as far as orphans need it."""

    def __init__(self) -> None:
        self.uids = {"digits": "m1", "letters": "m2"}
        self.is_away = False
        self.refusals: dict[str, ServiceError] = {}
        self.asked: list[str] = []

    async def uid_of(self, name: str) -> str:
        self.asked.append(name)
        if name in self.refusals:
            raise self.refusals[name]
        if self.is_away:
            raise ServiceError(14, "UNAVAILABLE", "models are away")  # type: ignore[arg-type]
        if name not in self.uids:
            raise not_found("model", name)
        return self.uids[name]


def removal(room: StudiesRoom, home: Path, orphan_seconds: float = 1e9) -> RemoveStudies:
    runners = {Kind.HYPER_SEARCH: room.runner, Kind.MODEL_TUNING: room.runner}
    return RemoveStudies(room.studies, runners, DiskStudyFolders(home, orphan_seconds))  # type: ignore[arg-type]


def orphans(room: StudiesRoom, models: PlayedModels) -> RemoveOrphans:
    return RemoveOrphans(
        room.studies,
        models,  # type: ignore[arg-type]
        grace_seconds=100,
        now=room.now,
        wake=lambda: None,
        wake_removals=lambda: None,
    )


async def test_trials_go_before_files_and_files_before_rows(room: StudiesRoom, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_text("print()")
    uid, kept = await room.add(request=request_of(maxJobNum=3)), await room.add("kept", request=request_of(maxJobNum=1))
    folders = DiskStudyFolders(tmp_path)
    assert folders.publish(uid, upload) == f"tuning/{uid}/upload"
    folders.publish(kept, upload)
    await room.to_the_end(uid)
    await room.to_the_end(kept)
    trials = [trial.uid for trial in await room.trials(uid)]
    await room.studies.delete(uid, room.now())
    loop = removal(room, tmp_path)
    await loop.step()
    assert (room.runner.deleted, await room.studies.page(uid, TrialPage())) == (trials, [])
    assert folders.folder(uid).is_dir()
    await loop.step()
    assert not folders.folder(uid).exists()
    assert await room.studies.deleted() == []
    assert folders.folder(kept).is_dir()
    assert len(await room.trials(kept)) == 1


async def test_a_service_that_is_away_holds_up_no_other_removal(room: StudiesRoom, tmp_path: Path) -> None:
    uid = await room.add(request=request_of(maxJobNum=1))
    await room.to_the_end(uid)
    await room.studies.delete(uid, room.now())

    async def away(uids: object) -> None:
        raise ServiceError(14, "UNAVAILABLE", "scheduling is away")  # type: ignore[arg-type]

    working, room.runner.delete = room.runner.delete, away  # type: ignore[method-assign]
    loop = removal(room, tmp_path)
    await loop.step()
    assert len(await room.trials(uid)) == 1
    room.runner.delete = working  # type: ignore[method-assign]
    await loop.step()
    await loop.step()
    assert await room.studies.deleted() == []
    assert TRIALS_AT_ONCE > 1


async def test_folders_of_nobody_are_removed_when_they_are_old(room: StudiesRoom, tmp_path: Path) -> None:
    uid = await room.add()
    for name in (uid, "0" * 32, ".spool-1"):
        (tmp_path / "tuning" / name).mkdir(parents=True)
    await removal(room, tmp_path).step()
    assert len(list((tmp_path / "tuning").iterdir())) == 3
    await removal(room, tmp_path, orphan_seconds=0.0).step()
    assert [path.name for path in (tmp_path / "tuning").iterdir()] == [uid]


async def test_tunings_go_with_their_model(room: StudiesRoom) -> None:
    models, request = PlayedModels(), request_of(maxJobNum=1)
    mine = {"kind": Kind.MODEL_TUNING, "model_uid": "m1", "model_name": "digits", "request": request}
    ended, running = await room.add("ended", **mine), await room.add("running", **{**mine, "request": request_of()})
    other = await room.add("other", **{**mine, "model_uid": "m2", "model_name": "letters"})
    await room.to_the_end(ended)
    await room.to_the_end(other)
    await room.until_running(running, 1)
    loop = orphans(room, models)
    await loop.step()
    assert (await room.study(running)).status is Status.RUNNING
    # A model of the same name that was made later is another one.
    models.uids["digits"] = "m3"
    await loop.step()
    assert (await room.study(running)).status is Status.STOPPED
    room.passes(99)
    await loop.step()
    assert await room.studies.get(ended) is not None
    models.is_away = True
    await loop.step()
    assert await room.studies.get(ended) is not None
    models.is_away = False
    room.passes(2)
    await loop.step()
    assert (await room.studies.get(ended), await room.studies.get(running)) == (None, None)
    assert await room.studies.get(other) is not None


async def test_a_model_that_nobody_can_say_anything_of_holds_up_no_other(room: StudiesRoom) -> None:
    models, request = PlayedModels(), request_of(maxJobNum=1)
    models.refusals["digits"] = ServiceError(7, "PERMISSION_DENIED", "not yours")  # type: ignore[arg-type]
    mine = {"kind": Kind.MODEL_TUNING, "request": request}
    first = await room.add("first", **mine, model_uid="m1", model_name="digits")
    other = await room.add("other", **mine, model_uid="gone", model_name="sounds")
    loop = orphans(room, models)
    await loop.step()
    assert [(await room.study(uid)).status for uid in (first, other)] == [Status.SUBMITTED, Status.STOPPED]
    del models.refusals["digits"]
    models.uids["digits"] = "m3"
    await loop.step()
    assert (await room.study(first)).status is Status.STOPPED


async def test_models_are_not_waited_for_one_by_one_while_they_are_away(room: StudiesRoom) -> None:
    models = PlayedModels()
    for number in range(3):
        await room.add("t", kind=Kind.MODEL_TUNING, model_uid=f"m{number}", model_name=f"model{number}")
    models.is_away = True
    await orphans(room, models).step()
    assert len(models.asked) == 1


async def test_a_large_study_goes_in_few_calls(room: StudiesRoom, tmp_path: Path) -> None:
    uid = await room.add(request=request_of(maxJobNum=-1))
    await room.studies.begin(uid, room.now())
    trials = [
        Trial(uid, number, f"{number:032x}", {"rate": 0.5}, status=TrialStatus.FINISHED) for number in range(4100)
    ]
    # One was killed and began anew.
    trials[0].earlier_uids = ("e" * 32,)
    await room.studies.append(uid, 0, trials, is_exhausted=True)
    await room.studies.request_stop(uid, room.now(), at_once=True)
    await room.studies.delete(uid, room.now())
    calls: list[int] = []

    async def delete(uids: Sequence[str]) -> None:
        calls.append(len(uids))

    room.runner.delete = delete  # type: ignore[method-assign]
    loop = removal(room, tmp_path)
    while await room.studies.deleted():
        await loop.step()
    assert calls == [TRIALS_AT_ONCE + 1, TRIALS_AT_ONCE, 4100 - 2 * TRIALS_AT_ONCE]


async def test_studies_of_the_other_kind_are_removed_while_a_service_is_away(room: StudiesRoom, tmp_path: Path) -> None:
    request, asked = request_of(maxJobNum=1), 0
    tunings = [
        await room.add(name, kind=Kind.MODEL_TUNING, model_uid="m1", request=request) for name in ("a", "b", "c")
    ]
    search = await room.add("search", request=request)
    for uid in (*tunings, search):
        await room.to_the_end(uid)
        await room.studies.delete(uid, room.now())

    class Away(PlayedRunner):
        async def delete(self, uids: Sequence[str]) -> None:
            nonlocal asked
            asked += 1
            raise ServiceError(4, "DEADLINE_EXCEEDED", "training hangs")  # type: ignore[arg-type]

    runners = {Kind.HYPER_SEARCH: room.runner, Kind.MODEL_TUNING: Away(room.jobs, room.runner.text_of)}
    loop = RemoveStudies(room.studies, runners, DiskStudyFolders(tmp_path))
    await loop.step()
    # Nobody waits for it once for each study.
    assert asked == 1
    await loop.step()
    assert {uid for uid, _ in await room.studies.deleted()} == set(tunings)
