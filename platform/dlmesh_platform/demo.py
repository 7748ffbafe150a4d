"""`dlmesh demo` (`make run`): a platform of its own, the main job, what came out, everything stopped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dlmesh_platform.launch import RunningPlatform, launch
from dlmesh_platform.main_job import RANKS, MainJob, Prediction, Validation, write_digits
from dlmesh_platform.supervisor import exclusive

LEAST_TOP1 = 0.95
Result = TypeVar("Result")


class DemoError(RuntimeError):
    """A step failed; the message says which and why."""


class Demo:
    """One demonstration on `home`, which it empties first."""

    def __init__(self, home: Path, console: Console) -> None:
        self._home = home
        self._console = console
        self._durations: list[tuple[str, float]] = []
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
        )

    def run(self) -> None:
        """DemoError when a step fails or the result is not good enough."""
        started = time.monotonic()
        with exclusive(self._home):
            for entry in self._home.iterdir():
                if entry.name != "run":
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        data = self._home / "data"
        port = os.environ.get("DLMESH_HTTP_PORT")
        environment = {"DLMESH_HTTP_PORT": port} if port else {}
        with self._progress:
            held_out = self._step("write 1787 training images", lambda _: self._write_images(data))
            with self._platform(environment) as platform:
                validation, predictions = self._main_job(platform, held_out)
                self._step("stop", lambda _: platform.stop())
        self._summary(validation, predictions, time.monotonic() - started)
        if validation.top1 < LEAST_TOP1:
            raise DemoError(f"Top1 is {validation.top1:.4f}, expected at least {LEAST_TOP1}")

    def _write_images(self, data: Path) -> list[Path]:
        return list(write_digits(data / "digits", self._home / "held-out").values())

    @contextmanager
    def _platform(self, environment: dict[str, str]) -> Iterator[RunningPlatform]:
        manager = launch(self._home, environment)
        platform = self._step("start the platform", lambda _: manager.__enter__())
        try:
            yield platform
        finally:
            manager.__exit__(None, None, None)

    def _main_job(self, platform: RunningPlatform, held_out: list[Path]) -> tuple[Validation, list[Prediction]]:
        job = MainJob(platform.client(), "digits")

        def dataset(watch: Callable[[float, str], None]) -> None:
            job.create_dataset()
            job.await_dataset(watch)

        def train(watch: Callable[[float, str], None]) -> None:
            job.start_training()
            job.await_training(watch)

        def validate(watch: Callable[[float, str], None]) -> Validation:
            job.start_validation()
            return job.await_validation(watch)

        def predict(watch: Callable[[float, str], None]) -> list[Prediction]:
            job.start_prediction(held_out, "ten")
            return job.await_prediction("ten", watch)

        self._step("import: PNG folders to LMDB, 80/10/10", dataset)
        self._step("model from the template", lambda _: job.create_model())
        self._step(f"train: DeepSpeed, ranks: {RANKS}", train)
        validation = self._step("validate on the test split", validate)
        self._step("inference model", lambda _: job.create_inference())
        predictions = self._step("predict 10 unseen images on Triton", predict)
        return validation, predictions

    def _step(self, name: str, action: Callable[[Callable[[float, str], None]], Result]) -> Result:
        task = self._progress.add_task(name, total=100, note="")
        started = time.monotonic()

        def watch(percent: float, status: str) -> None:
            self._progress.update(task, completed=percent, note=status)

        try:
            result = action(watch)
        except Exception as error:
            self._progress.update(task, note="failed")
            raise DemoError(f"step '{name}' failed: {error}") from error
        self._progress.update(task, completed=100, note="")
        self._durations.append((name, time.monotonic() - started))
        return result

    def _summary(self, validation: Validation, predictions: list[Prediction], seconds: float) -> None:
        steps = Table(title="What was done, through the public REST API", title_justify="left")
        steps.add_column("step")
        steps.add_column("seconds", justify="right")
        for name, duration in self._durations:
            steps.add_row(name, f"{duration:.1f}")
        steps.add_section()
        steps.add_row("all", f"{seconds:.1f}")

        confusion = Table(title="Confusion matrix of the test split (rows: truth)", title_justify="left")
        confusion.add_column("")
        for label in validation.labels:
            confusion.add_column(label, justify="right")
        for row, (label, counts) in enumerate(zip(validation.labels, validation.confusion, strict=True)):
            cells = [
                Text(str(count) if count else "·", style="green" if row == column else "red" if count else "dim")
                for column, count in enumerate(counts)
            ]
            confusion.add_row(label, *cells)

        answers = Table(title="Ten unseen images, answered by Triton", title_justify="left")
        for column in ("image", "label", "probability", "truth"):
            answers.add_column(column)
        right = 0
        for prediction in sorted(predictions, key=lambda prediction: prediction.image):
            truth = prediction.image[0]
            right += prediction.label == truth
            style = "green" if prediction.label == truth else "red"
            answers.add_row(prediction.image, f"[{style}]{prediction.label}[/]", f"{prediction.probability:.3f}", truth)

        self._console.print()
        for table in (steps, confusion, answers):
            self._console.print(table)
        self._console.print(
            f"Top1 [bold]{validation.top1:.4f}[/] on the test split, {right} of {len(predictions)} predictions right. "
            "Everything is stopped."
        )


def failure_report(home: Path) -> str:
    """The end of the log that was written last, and where all are."""
    logs = [
        path for pattern in ("log/*.log", "jobs/*/*/rank-*.err", "jobs/*/*/rank-*.out") for path in home.glob(pattern)
    ]
    logs = [path for path in logs if path.name != "access.log" and path.stat().st_size]
    lines = []
    jobs = sorted((path for path in logs if "jobs" in path.parts), key=lambda path: path.stat().st_mtime)
    services = sorted((path for path in logs if "jobs" not in path.parts), key=lambda path: path.stat().st_mtime)
    for path in [*services[-1:], *jobs[-1:]]:
        lines += [f"--- {path}", *path.read_text(errors="replace").splitlines()[-15:]]
    return "\n".join([*lines, f"Logs: {home / 'log'} and {home / 'jobs'}"])
