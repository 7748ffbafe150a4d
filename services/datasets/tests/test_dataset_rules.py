"""The state machine and the words, without I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from dataset_fakes import make_dataset
from datasets_service.domain.dataset import ImportedRecords, JobFacts, Status
from datasets_service.domain.words import Backend, ColorMode, ResizeMode, SourceType, read_word, require_built
from servicekit.errors import Code, ServiceError

START = datetime(2026, 1, 1, tzinfo=UTC)
RECORDS = ImportedRecords("hash", 10, "mean.npy", {}, 2, ("a/1.png", "a/2.png"))


def test_a_dataset_follows_its_job() -> None:
    dataset = make_dataset()
    dataset.follow(JobFacts("j", "SUBMITTED", "waiting for a slot"))
    assert (dataset.status, dataset.status_message) == (Status.SUBMITTED, "waiting for a slot")
    dataset.follow(JobFacts("j", "RUNNING", done=1200, total=1797, started_at=START, driver_id="driver"))
    assert (dataset.status, dataset.status_message) == (Status.RUNNING, "imported 1200 of 1797 images")
    assert dataset.run_seconds(START + timedelta(seconds=5)) == 5
    dataset.follow(JobFacts("j", "SUBMITTED", "restart 1 of 2"))
    assert dataset.status is Status.SUBMITTED
    dataset.finish(RECORDS, START + timedelta(seconds=7))
    assert (dataset.status, dataset.driver_id) == (Status.FINISHED, "driver")
    assert dataset.status_message == "2 images could not be read: a/1.png, a/2.png"
    assert dataset.run_seconds(START + timedelta(seconds=50)) == 7


@pytest.mark.parametrize(
    ("facts", "status", "message"),
    [
        (JobFacts("j", "KILLED", "stopped by alice"), Status.STOPPED, "stopped by alice"),
        (JobFacts("j", "ERROR", "exit 1", log_tail="No space left\n"), Status.FAILED, "exit 1\nNo space left"),
        (JobFacts("j", "ERROR", "exit 1", refusal="1 class only", log_tail="x"), Status.FAILED, "1 class only"),
    ],
)
def test_final_states_say_why_and_never_change(facts: JobFacts, status: Status, message: str) -> None:
    dataset = make_dataset()
    dataset.follow(facts)
    for _ in range(2):
        assert (dataset.status, dataset.status_message) == (status, message)
        dataset.follow(JobFacts("j", "RUNNING"))
        dataset.finish(RECORDS, START)
        dataset.fail("late", START)
        dataset.stopped_before_start(START)


def test_words_are_read_in_any_spelling() -> None:
    assert read_word(ColorMode, "f", "GRAY") is ColorMode.GRAY
    assert read_word(ResizeMode, "f", "Half_Crop half-fill") is ResizeMode.HALF_CROP_HALF_FILL
    assert read_word(Backend, "f", "tfrecords") is Backend.TFRECORDS
    with pytest.raises(ServiceError, match="f: 'round' is not valid; allowed: one of squash, crop"):
        read_word(ResizeMode, "f", "round")


def test_what_is_not_built_names_what_is() -> None:
    require_built(SourceType.IMAGES_FOR_CLASSIFICATION, Backend.LMDB)
    with pytest.raises(ServiceError, match="built: IMAGEFORCLASSIFICATION with LMDB") as caught:
        require_built(SourceType.CSV, Backend.CSV)
    assert caught.value.code is Code.UNIMPLEMENTED
