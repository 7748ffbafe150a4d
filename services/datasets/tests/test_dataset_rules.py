"""The state machine and the words, without I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from dataset_fakes import make_dataset
from datasets_service.domain.dataset import ImportedRecords, JobFacts, Status
from datasets_service.domain.splitting import SplitAlgorithm
from datasets_service.domain.words import (
    BACKENDS,
    Backend,
    ColorMode,
    ResizeMode,
    SourceType,
    read_backend,
    read_word,
)
from datasets_service.importers.base import Importer
from datasets_service.importers.registry import IMPORTERS, importer_for
from servicekit.errors import ServiceError

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


def test_a_long_log_does_not_hide_what_happened() -> None:
    dataset = make_dataset()
    dataset.follow(JobFacts("j", "ERROR", "rank 0 exited with code 3", log_tail="x" * 10**6 + "No space left"))
    assert dataset.status_message.startswith("rank 0 exited with code 3\nxxx")
    assert dataset.status_message.endswith("xxxNo space left")
    assert len(dataset.status_message) < 4100


def test_words_are_read_in_any_spelling() -> None:
    assert read_word(ColorMode, "f", "GRAY") is ColorMode.GRAY
    assert read_word(ResizeMode, "f", "Half_Crop half-fill") is ResizeMode.HALF_CROP_HALF_FILL
    assert read_word(Backend, "f", "tfrecords") is Backend.TFRECORDS
    with pytest.raises(ServiceError, match="f: 'round' is not valid; allowed: one of squash, crop"):
        read_word(ResizeMode, "f", "round")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("", "hold-out"),
        ("HoldOut", "hold-out"),
        ("hold_out", "hold-out"),
        ("random", "random"),
        ("By Name".replace(" ", "-"), "by-name"),
        ("k-fold", "k-fold 1/5"),
        ("KFold 2/3", "k-fold 2/3"),
        ("k-fold(10/10)", "k-fold 10/10"),
    ],
)
def test_split_algorithms_are_read_and_printed(text: str, printed: str) -> None:
    assert str(SplitAlgorithm.parse(text)) == printed
    assert SplitAlgorithm.parse(printed) == SplitAlgorithm.parse(text)


@pytest.mark.parametrize("text", ["stratify", "k-fold 0/5", "k-fold 6/5", "k-fold 1/1", "k-fold 1/101", "k-fold 1"])
def test_other_split_algorithms_are_refused(text: str) -> None:
    with pytest.raises(ServiceError, match=r"imagedetail.splitalgorithm: .* allowed: .*k-fold F/K"):
        SplitAlgorithm.parse(text)


def test_a_backend_that_a_source_cannot_have_is_refused() -> None:
    assert read_backend(SourceType.IMAGES_FOR_CLASSIFICATION, "tfrecords") is Backend.TFRECORDS
    with pytest.raises(ServiceError, match="dbbackend: 'LMDB' is not valid; allowed: one of CSV"):
        read_backend(SourceType.CSV, "LMDB")


def test_every_source_type_has_an_importer() -> None:
    assert set(IMPORTERS) == set(BACKENDS) == set(SourceType)
    for source_type in SourceType:
        assert isinstance(importer_for(source_type), Importer)
