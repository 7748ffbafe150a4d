"""The built-in templates for residual networks, tables and texts, trained and validated by the worker programs."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest
from datasets_service.domain.words import Backend, SourceType
from datasets_service.importers.registry import importer_for
from datasets_service.storage.files import DiskSources
from datasets_service.tables.cells import is_number
from datasets_service.worker.import_dataset import import_dataset
from dlmesh_sdk.picture_comparison import embed
from dlmesh_sdk.record_datasets import open_records
from dlmesh_sdk.served import make
from dlmesh_sdk.served.inference import Predictor
from dlmesh_sdk.table_datasets import Table
from dlmesh_sdk.text_encoding import TextEncoding, words_of
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import mean_absolute_error
from torch.utils.data import DataLoader
from training_service.domain.specs import TrainingSpec, ValidationSpec

REPOSITORY = Path(__file__).parents[3]
BUILTIN = REPOSITORY / "services/models/models_service/builtin"
PACKAGES = ["sdk", "workerkit", "servicekit", "contracts", "recordkit", "caffe_nets"]


def imported(folder: Path, source_type: SourceType, backend: Backend, **fields: Any) -> Path:
    """The dataset that the datasets service makes of the sources below `folder`."""
    (folder / "staging").mkdir()
    request = DatasetRequest("data", str(source_type), str(backend), "local", **fields)
    spec = ImportSpec(
        uid="dataset",
        name="data",
        source_type=source_type,
        backend=backend,
        options=importer_for(source_type).check(request, DiskSources((folder,))),
        data_roots=(str(folder),),
        staging=str(folder / "staging"),
        target=str(folder / "dataset"),
    )
    import_dataset(spec, lambda done, total: None)
    return folder / "dataset"


def imported_table(folder: Path, header: list[str], rows: list[list[Any]], test_rows: int) -> Path:
    """A CSV dataset whose last rows are the test split."""
    sources = {}
    for split, part in {"train": rows[:-test_rows], "test": rows[-test_rows:]}.items():
        sources[f"{split}_path"] = str(folder / f"{split}.csv")
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *part])
    return imported(folder, SourceType.CSV, Backend.CSV, **sources)


def table_data(dataset: Path) -> dict[str, str]:
    """The splits as the datasets service tells them."""
    return {split: str(dataset / split / "data.csv") for split in ("train", "test")}


def environment(job: Path | None = None) -> dict[str, str]:
    paths = [*(str(REPOSITORY / "libs" / package) for package in PACKAGES), str(REPOSITORY / "services/training")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2"}
    # Threads that spin while they wait cost several times as much where others use the cores, too.
    variables["OMP_WAIT_POLICY"] = "PASSIVE"
    if job:
        job.mkdir()
        variables |= {"DLMESH_JOB_ID": "j1", "DLMESH_JOB_ATTEMPT": "1", "DLMESH_JOB_TOKEN": "t"}
        variables |= {"DLMESH_JOB_DIR": str(job), "DLMESH_SCHEDULING_ADDRESS": "127.0.0.1:1"}
    return variables


def write_training(
    folder: Path, template: str, data: dict[str, str], weights: str = "", **hyperparameter: Any
) -> list[str]:
    """The command that trains as the template is set, but for `hyperparameter`."""
    settings = json.loads((BUILTIN / template / "template.json").read_text())
    TrainingSpec(
        code=str(BUILTIN / template),
        train_dir=str(folder / "checkpoints"),
        weights=weights,
        data=data,
        parameters={
            "batch_size": settings["batchsize"],
            "hyperparameter": settings["hyperparameter"] | hyperparameter,
        },
    ).write(folder / "spec.json")
    return [sys.executable, "-m", "training_service.worker.run_training", str(folder / "spec.json")]


def run(command: list[str], job: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=environment(job), text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == code, done.stderr[-3000:]
    return done


def validate(folder: Path, template: str, input_dir: Path, metrics: list[str]) -> dict[str, str]:
    """The values; the result file stays in `folder/output`."""
    spec = ValidationSpec(
        code=str(BUILTIN / template),
        model=str(folder / "checkpoints"),
        input_dir=str(input_dir),
        output_dir=str(folder / "output"),
        label_file=str(input_dir.parent / "labels.txt"),
        threshold=0.0,
        metrics=metrics,
    )
    spec.write(folder / "validation.json")
    job = folder / "job"
    run([sys.executable, "-m", "training_service.worker.run_validation", str(folder / "validation.json")], job)
    result = json.loads(next(job.glob("**/report.json")).read_text())["result"]
    return {pair["name"]: pair["value"] for pair in result["pairs"]}


def model_of(template: str) -> dict[str, Any]:
    """What model.py of a template defines."""
    names: dict[str, Any] = {"__name__": "model"}
    exec(compile((BUILTIN / template / "model.py").read_text(), f"{template}/model.py", "exec"), names)
    return names


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits, 8x8, as LMDB."""
    folder = tmp_path_factory.mktemp("digits")
    samples = load_digits()
    for number, (pixels, label) in enumerate(zip(samples.images, samples.target, strict=True)):
        image = folder / "images" / str(label) / f"{number:04d}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(image)
    return imported(
        folder,
        SourceType.IMAGES_FOR_CLASSIFICATION,
        Backend.LMDB,
        train_path=str(folder / "images"),
        test_percentage=20,
        width=8,
        height=8,
        color_mode="Gray",
    )


@pytest.mark.slow
def test_a_residual_network_learns_digits(tmp_path: Path, digits: Path) -> None:
    template = "pytorch-resnet-image-classification"
    data = {split: str(digits / split) for split in ("train", "test")}
    run(write_training(tmp_path, template, data, epoch=3))
    values = validate(tmp_path, template, digits / "test", ["Top1", "Top5"])
    assert 0.97 <= float(values["Top1"]) <= float(values["Top5"])


@pytest.mark.slow
def test_alike_pictures_come_near_each_other(tmp_path: Path, digits: Path) -> None:
    template, data = "pytorch-image-comparison", {split: str(digits / split) for split in ("train", "test")}
    output = run(write_training(tmp_path, template, data, epoch=4)).stdout
    assert "are similar: right for" in output
    assert float(validate(tmp_path, template, digits / "test", ["Top1"])["Top1"]) >= 0.9
    serving = json.loads((tmp_path / "checkpoints" / "serving.json").read_text())
    assert serving["task"] == "comparison"
    program = SimpleNamespace(**model_of(template))
    served = make(serving, program)
    predict = Predictor(served, tmp_path / "checkpoints")
    # Of pictures that it did not learn from.
    vectors, labels = embed(predict, open_records(digits / "test", served.to_input))
    pairs = list(itertools.combinations(range(0, len(labels), 3), 2))
    right: dict[bool, list[bool]] = {True: [], False: []}
    for first, second in pairs:
        is_alike = bool(labels[first] == labels[second])
        distance, is_similar = served.compare(vectors[first].tolist(), vectors[second].tolist())
        assert 0 <= distance <= 2.001
        right[is_alike].append(is_similar is is_alike)
    assert all(sum(found) / len(found) >= 0.9 for found in right.values())


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 1, 1), (3, 9, 31), (1, 200, 130)])
def test_a_residual_network_takes_pictures_of_any_size(channels: int, height: int, width: int) -> None:
    program = model_of("pytorch-resnet-image-classification")
    model = program["build_model"](5, channels, height, width)
    picture = Image.new("RGB", (40, 30), "red")
    pixels = torch.from_numpy(program["preprocess"](picture, channels, height, width))
    assert pixels.shape == (channels, height, width)
    outputs = model(pixels[None])
    assert outputs.shape == (1, 5)
    assert outputs.isfinite().all()


@pytest.mark.slow
def test_numbers_are_learned_from_numbers_and_texts_with_gaps(tmp_path: Path) -> None:
    dice = random.Random(4)
    offsets = {"north": -300.0, "south": 500.0, "": 0.0}
    rows = []
    for number in range(900):
        area, region = dice.uniform(20, 200), dice.choice(list(offsets))
        is_known = dice.random() > 0.1
        price = 1e6 + 10 * (area if is_known else 110.0) + offsets[region]
        rows.append([number, f"{area:.3f}" if is_known else "", region, f"{price:.3f}"])
    dataset = imported_table(tmp_path, ["id", "area", "region", "price"], rows, test_rows=150)
    template, data = "pytorch-tabular", table_data(dataset)
    assert "tag test_mae" in run(write_training(tmp_path, template, data, epoch=10)).stdout
    values = validate(tmp_path, template, Path(data["test"]), ["R2", "MAE"])
    assert float(values["R2"]) >= 0.95
    result = json.loads((tmp_path / "output" / "validation.json").read_text())
    predicted = [row["vector"] for row in result["result"]]
    assert [row["sampleId"] for row in result["result"]] == [str(number) for number in range(150)]
    truth = [[float(row[3])] for row in rows[-150:]]
    assert [row["groundTruth"] for row in result["samples"]] == truth
    assert float(values["MAE"]) == pytest.approx(mean_absolute_error(truth, predicted), rel=1e-4)


def games(pairs: int, seed: int) -> list[list[str]]:
    """Texts and the winner that they name; each has the same words as another one with another winner."""
    dice, players = random.Random(seed), ["Ann", "Bob", "Cléo", "Dan", "Eve", "王", "Gus", "Hana"]
    rows = []
    for _ in range(pairs):
        begin = " ".join(dice.choices(["Yesterday,", "surely", "once", "in June:"], k=dice.randint(0, 3)))
        first, second = dice.sample(players, 2)
        rows += [[f"{begin} {winner} beats {loser}!", winner] for winner, loser in ((first, second), (second, first))]
    return rows


@pytest.fixture(scope="module")
def winners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("winners")
    return imported_table(folder, ["text", "winner"], games(400, seed=1), test_rows=200)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small models, more of them wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_order_of_words_is_learned(winners: Path) -> None:
    rows = Table(winners / "test")
    # Whatever looks at words alone is right for one of the two at most.
    words = [sorted(words_of(text)) for text, _ in rows]
    assert words[::2] == words[1::2]
    truth = [winner for _, winner in rows]
    assert all(map(str.__ne__, truth[::2], truth[1::2]))

    encoding = TextEncoding.fit(Table(winners / "train"))
    train, test = encoding.rows(Table(winners / "train")), encoding.rows(rows)
    torch.manual_seed(1)
    model = model_of("pytorch-text-classification")["build_model"](**encoding.shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(6):
        for tokens, labels in DataLoader(train, batch_size=32, shuffle=True, collate_fn=train.collate):
            loss = torch.nn.functional.cross_entropy(model(tokens), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    tokens, labels = test.collate([test[number] for number in range(len(test))])
    with torch.no_grad():
        outputs = model.eval()(tokens)
        # How far a batch is padded changes nothing.
        torch.testing.assert_close(model(torch.nn.functional.pad(tokens, (0, 9))), outputs, rtol=1e-4, atol=1e-4)
    assert (outputs.argmax(1) == labels).float().mean() >= 0.95


@pytest.mark.slow
def test_weights_keep_their_words(tmp_path: Path, winners: Path) -> None:
    template = "pytorch-text-classification"
    run(write_training(tmp_path, template, table_data(winners), learningrate=0.002, epoch=6))
    # Trained no further, on rows whose frequent words are others.
    other = tmp_path / "other"
    other.mkdir()
    rows = [row for row in games(100, seed=2) for _ in range(3 if "Hana" in row[0] else 1)]
    data = table_data(imported_table(other, ["text", "winner"], rows, test_rows=60))
    assert TextEncoding.fit(Table(data["train"])).words != TextEncoding.fit(Table(winners / "train")).words
    weights, nearly_none = str(tmp_path / "checkpoints"), {"learningrate": 1e-9, "maxiteration": 1}
    output = run(write_training(other, template, data, weights, **nearly_none)).stdout
    accuracy = next(line for line in output.splitlines()[::-1] if "tag test_accuracy" in line)
    assert float(accuracy.rsplit(" ", 1)[1]) >= 0.95
    first, second = (json.loads((folder / "checkpoints/serving.json").read_text()) for folder in (tmp_path, other))
    assert first == second


NUMBERS = ["1", "-2.5", ".5", "5.", "-0", "1e-3", "1E+5", "1e308"]
TEXTS = ["007", "1_000", "+49", "1,5", "NaN", "inf", "1e999", "1.e5", "-", ".", "x"]


@pytest.mark.parametrize("cell", NUMBERS + TEXTS)
def test_programs_tell_numbers_from_texts_as_imports_do(tmp_path: Path, cell: str) -> None:
    (tmp_path / "own.csv").write_text(f'cell,other\n"{cell}",1\n" {cell} ",2\n')
    assert Table(tmp_path / "own.csv").columns[0].is_number == is_number(cell) == (cell in NUMBERS)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("numbers", "texts"), [(0, [0]), (3, []), (2, [1, 1000])])
def test_a_network_for_any_columns(kind: torch.dtype, numbers: int, texts: list[int]) -> None:
    model = model_of("pytorch-tabular")["build_model"](numbers, texts, 4).to(kind)
    indices = torch.tensor([[size] * 2 for size in texts], dtype=torch.int64).reshape(len(texts), 2).T
    outputs = model((torch.randn(2, 2 * numbers), indices))
    assert outputs.shape == (2, 4)
    assert outputs.isfinite().all()
