"""Asks a model's inference.py in the name of Triton's runner. Copied into the model repository with what it needs.

A bundle has the program in `code`, what its training left in `checkpoints`, `program.json` (framework,
labels, form of the dataset's records), perhaps `labels.txt` (of the dataset) and `parameters.json` (of the training).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import program_results  # type: ignore[import-not-found]
from model_room import ModelRoom  # type: ignore[import-not-found]

RESULT_FILE = "result.json"
FILE_BYTES = 1024**3
START_SECONDS, GRACE_SECONDS = 300.0, 60.0
# What cannot be killed sooner, since it waits for a disk say, is left.
END_SECONDS = 30.0
LAST_WORDS_BYTES, LAST_WORDS_LINES = 4000, 12
# By what their first bytes are; programs take pictures by their suffixes.
_PICTURES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"GIF8": ".gif", b"BM": ".bmp"}
_PICTURES |= {b"II*\0": ".tiff", b"MM\0*": ".tiff", b"P5\n": ".pgm", b"P6\n": ".ppm"}


class FailedError(Exception):
    """The program did not answer; its last words."""


class TooLongError(FailedError):
    """It was ended for the time that it took."""


class Program:
    """One model's program, in processes of its own. `seconds` limits a run."""

    def __init__(self, bundle: Path, model: str, version: str, seconds: float) -> None:
        self.bundle, self.seconds = bundle, seconds
        self.description: dict[str, Any] = json.loads((bundle / "program.json").read_text())
        self._room = ModelRoom(bundle, model, version)
        self.work = self._room.work
        # A copy: programs write beside themselves, and what they find here is what was exported.
        shutil.copytree(bundle / "code", self.work / "code", symlinks=True)
        self._host: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._left = 0
        self._records: Mapping[str, Any] | None = self.description.get("records")
        # Most programs take pictures for a prediction. One that did not, and took records, gets these from then on.
        self._takes_records = False

    def start(self) -> None:
        """Have a process that has imported what the program imports; FailedError."""
        spec = {
            "code": str(self.work / "code"),
            "work": str(self.work),
            "home": str(self._room.home or ""),
            "bundle": str(self.bundle),
            "framework": self.description["framework"],
            "file_bytes": FILE_BYTES,
        }
        # However this process ends, the other end of the pipe is closed then.
        held, self._lifeline = os.pipe()
        command = [sys.executable, str(Path(__file__).with_name("program_host.py")), json.dumps(spec), str(held)]
        try:
            self._host = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.work, pass_fds=[held]
            )
        finally:
            os.close(held)
        self._hear(START_SECONDS)

    def run(self, items: Sequence[bytes]) -> list[dict[str, Any]]:
        """A result of each item: `{"scores"}`, `{"vector"}` or, for what it cannot read, `{"error"}`. FailedError when
        the program raises, writes junk or takes too long for all of them."""
        if self._takes_records:
            return self._run(items, self._records)
        try:
            return self._run(items, None)
        except FailedError as error:
            if self._records is None or isinstance(error, TooLongError):
                raise
            try:
                results = self._run(items, self._records)
            except FailedError as other:
                raise FailedError(f"{error}\nand, given records as of its dataset: {other}") from other
        # Perhaps it took pictures before, of the size that its dataset has.
        self._takes_records = not all("error" in result for result in results)
        return results

    def _run(self, items: Sequence[bytes], records: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        names = [f"{number:06d}{_suffix(item)}" for number, item in enumerate(items)]
        contents = dict(zip(names, items, strict=True))
        folder = self._make_folder(contents)
        told = self._ask(folder, records, decode=False)
        unreadable: dict[str, str] = told["unreadable"]
        if told["code"]:
            # Perhaps for a picture that is cut short.
            words = self._last_words(folder, told["code"])
            self._make_folder({name: item for name, item in contents.items() if name not in unreadable})
            told = self._ask(folder, records, decode=True)
            unreadable |= told["unreadable"]
            if not told["unreadable"]:
                raise FailedError(words)
        if told["code"] is None:
            raise TooLongError(f"inference.py took longer than {self.seconds:g} s")
        if told["code"]:
            raise FailedError(self._last_words(folder, told["code"]))
        asked = [name for name in names if name not in unreadable]
        found: dict[str, dict[str, Any]] = {name: {"error": reason} for name, reason in unreadable.items()}
        if asked:
            try:
                file = folder / "output" / RESULT_FILE
                found |= program_results.read_results(file, asked, self.description["labels"])
            except program_results.JunkError as error:
                raise FailedError(f"inference.py: {error}") from error
        return [found[name] for name in names]

    def close(self) -> None:
        """End its processes and remove its folder."""
        self._end()
        self._room.leave()

    def _ask(self, folder: Path, records: Mapping[str, Any] | None, *, decode: bool) -> dict[str, Any]:
        labels = self.bundle / "labels.txt"
        options = {
            "--model": self.bundle / "checkpoints",
            "--input_dir": folder / "input",
            "--output_dir": folder / "output",
            "--output_file": RESULT_FILE,
            "--prob_thresh": "0",
            "--validate": "",
            "--label_file": labels if labels.is_file() else "",
        }
        message = {
            "arguments": [str(part) for option in options.items() for part in option],
            "input": str(folder / "input"),
            "log": str(self.work / "log"),
            "seconds": self.seconds,
            "decode": decode,
            "records": records,
        }
        if self._host is None or self._host.poll() is not None:
            self._end()
            self.start()
        assert self._host is not None
        assert self._host.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._host.stdin.write(json.dumps(message).encode() + b"\n")
            self._host.stdin.flush()
        told: dict[str, Any] = json.loads(self._hear(self.seconds + GRACE_SECONDS))
        return told

    def _hear(self, seconds: float) -> bytes:
        assert self._host is not None
        assert self._host.stdout is not None
        is_over = bool(select.select([self._host.stdout], [], [], seconds)[0])
        if is_over:
            # Whole lines only are written, of less than a pipe holds.
            line = self._host.stdout.readline()
            if line.endswith(b"\n"):
                return line
        self._end()
        raise FailedError("the process of inference.py " + ("has ended" if is_over else "does not answer"))

    def _end(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._host is not None:
            try:
                self._host.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._host.kill()
                self._host.wait()
            for pipe in (self._host.stdin, self._host.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
            self._host = None

    def _make_folder(self, contents: Mapping[str, bytes]) -> Path:
        """A new one with these files as its input."""
        folder = self.work / "run"
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            # What a program has made cannot always be removed.
            self._left += 1
            folder.rename(self.work / f"left-{self._left}")
        for each in ("input", "output"):
            (folder / each).mkdir(parents=True)
        for name, content in contents.items():
            (folder / "input" / name).write_bytes(content)
        if (self.bundle / "labels.txt").is_file():
            # As in a dataset, for programs that look there.
            shutil.copyfile(self.bundle / "labels.txt", folder / "labels.txt")
        return folder

    def _last_words(self, folder: Path, code: int) -> str:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        try:
            content = program_results.read_part(self.work / "log", LAST_WORDS_BYTES, end=True)
        except OSError:
            content = b""
        text = content.decode(errors="replace").replace(str(folder), "RUN").replace(str(self.work), "WORK")
        lines = [line for line in text.splitlines() if line.strip()]
        return "\n".join([f"inference.py {how}", *lines[-LAST_WORDS_LINES:]])


def _suffix(item: bytes) -> str:
    for start, suffix in _PICTURES.items():
        if item.startswith(start):
            return suffix
    if item.startswith(b"RIFF") and item[8:12] == b"WEBP":
        return ".webp"
    try:
        text = item.decode()
    except UnicodeDecodeError:
        return ""
    if not text or "\0" in text:
        return ""
    return ".json" if text.lstrip().startswith(("{", "[")) else ".txt"
