"""What programs of trials write for their study, however it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from workerkit import trial_results
from workerkit.trial_results import RESULTS_FILE, TrialResults, read_trial_results


def test_they_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / RESULTS_FILE
    assert read_trial_results(tmp_path, tmp_path / "results") == TrialResults()
    file.write_bytes(b"[1, \xff]\0")
    assert read_trial_results(tmp_path, tmp_path / "results") == TrialResults("[1, \ufffd]\0")
    # Also right below the folder that is ours.
    file.rename(tmp_path / RESULTS_FILE)
    assert read_trial_results(tmp_path, tmp_path) == TrialResults("[1, \ufffd]\0")


def test_nothing_but_a_plain_file_is_read(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / RESULTS_FILE).write_text("[1]")
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "results").symlink_to(elsewhere)
    assert read_trial_results(folder, folder / "results") == TrialResults()
    (folder / "results").unlink()
    (folder / "results").mkdir()
    file = folder / "results" / RESULTS_FILE
    for make in (
        lambda: file.symlink_to(elsewhere / RESULTS_FILE),
        lambda: os.mkfifo(file),
        lambda: file.mkdir(),
    ):
        make()
        assert read_trial_results(folder, folder / "results") == TrialResults()
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


@pytest.mark.parametrize(("held", "is_read"), [(10, True), (11, False), (1 << 40, False)])
def test_what_is_too_large_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, is_read: bool) -> None:
    monkeypatch.setattr(trial_results, "MAX_RESULTS_BYTES", 10)
    with (tmp_path / RESULTS_FILE).open("wb") as file:
        file.truncate(held)
    error = "" if is_read else "val_dict_list.json is larger than 10 bytes"
    assert read_trial_results(tmp_path, tmp_path) == TrialResults("\0" * 10 * is_read, error)
