"""Weights that a training begins from and that may be anything."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from dlmesh_sdk.fabric_training import initial_weights
from dlmesh_sdk.table_datasets import TableEncoding
from dlmesh_sdk.table_prediction import encoding_of
from dlmesh_sdk.text_encoding import TextEncoding
from dlmesh_sdk.training_loop import load_weights, write_serving
from dlmesh_sdk.wrong_data import UnusableError
from torch import nn


def test_weights_are_loaded_and_what_is_none_is_named(tmp_path: Path) -> None:
    model, file = nn.Linear(2, 3), tmp_path / "start.pth"
    ones = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    torch.save(ones, file)
    load_weights(model, tmp_path)
    assert all(bool((value == 1).all()) for value in model.state_dict().values())

    def message() -> str:
        with pytest.raises(UnusableError, match=r"start\.pth") as caught:
            load_weights(model, file)
        return str(caught.value)

    for content in (b"", b"not a pickle", b"\x80\x02]q\x00."[:-1]):
        file.write_bytes(content)
        assert message().startswith("--weights: start.pth cannot be read as a state dict of torch: ")
    torch.save(model, file)
    assert "cannot be read" in message()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    assert "cannot be read" in message()
    torch.save([1], file)
    assert message() == "--weights: start.pth holds something else than a state dict"
    torch.save({**ones, "bias": "b"}, file)
    assert message() == "start.pth does not fit this model: bias is str and not [3]"
    torch.save({"epoch": 3, "weight": torch.ones(2, 2)}, file)
    assert "bias is missing; epoch is not in the model; weight is [2, 2] and not [3, 2]" in message()


def test_a_folder_without_weights_is_no_beginning(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match=r"--weights: there is no \.pth file in "):
        load_weights(nn.Linear(2, 3), tmp_path)


def test_elastic_programs_read_weights_from_their_command_line(tmp_path: Path) -> None:
    there = str(tmp_path)
    for none in ([], ["--weights"], ["--weights", ""], ["--weights="], ["--train_dir", there]):
        assert initial_weights(["elastic-main.py", *none]) == ""
    assert initial_weights(["elastic-main.py", "--weights", there, "--more"]) == there
    assert initial_weights(["elastic-main.py", f"--weights={there}"]) == there
    gone = f"{there}/gone.pth"
    for given in (["--weights", gone], [f"--weights={gone}"]):
        with pytest.raises(FileNotFoundError, match=r"--weights: there is no file or folder .*/gone\.pth"):
            initial_weights(["elastic-main.py", *given])


def test_weights_of_another_template(tmp_path: Path) -> None:
    write_serving(tmp_path, {"encoding": {"target": {}, "column": "text", "length": 8}})
    with pytest.raises(ValueError, match="--weights: they are of another template"):
        encoding_of(str(tmp_path), TableEncoding)
    with pytest.raises(ValueError, match="--weights: they are of another template"):
        encoding_of(str(tmp_path), TextEncoding)
