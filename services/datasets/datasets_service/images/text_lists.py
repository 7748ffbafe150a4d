"""Lists of images in text files: a path and what it is worth on every line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from datasets_service.importers.base import ImportRefusedError

MAX_LINE_BYTES = 1024 * 1024
MAX_LABELS = 100_000


def read_labels(file: Path) -> list[str]:
    """A label a line; its number, from 0, is the label's index."""
    labels: dict[str, None] = {}
    for number, line in _lines(file):
        if line in labels:
            raise ImportRefusedError(f"{file}, line {number}: label {line!r} is there twice")
        if not line.isprintable():
            raise ImportRefusedError(f"{file}, line {number}: label {line!r} is not printable text")
        labels[line] = None
    if not 2 <= len(labels) <= MAX_LABELS:
        raise ImportRefusedError(f"{file} has {len(labels)} labels; 2 to {MAX_LABELS} are needed")
    return list(labels)


def labels_in(file: Path) -> list[str]:
    """The labels that a list of images uses, when no list of labels was given.

    Numbers stand for themselves, so that 0 to the largest all become labels; names are sorted.
    """
    used = {text for _, _, text in labelled_paths(file)}
    if len(used) > MAX_LABELS:
        raise ImportRefusedError(f"{file} has {len(used)} labels; 2 to {MAX_LABELS} are possible")
    if all(text.isascii() and text.isdigit() and len(text) < 7 for text in used):
        return [str(number) for number in range(max(map(int, used), default=-1) + 1)]
    return sorted(used)


def labelled_paths(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, path, label's name or number): separated by the line's last tab, or its last blank."""
    for number, line in _lines(file):
        path, separator, label = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
        if not separator or not path.strip() or not label.strip():
            raise ImportRefusedError(f"{file}, line {number}: {line[:200]!r} has no label; a line is `path label`")
        yield number, path.strip(), label.strip()


def vector_paths(file: Path) -> Iterator[tuple[int, str, list[float]]]:
    """(line number, path, vector): a path without blanks (or one that ends at a tab), then finite numbers."""
    length = None
    for number, line in _lines(file):
        head, separator, rest = line.partition("\t")
        path, *values = [head, *rest.split()] if separator else line.split()
        try:
            vector = [float(value) for value in values]
        except ValueError as error:
            raise ImportRefusedError(f"{file}, line {number}: {error}; a line is `path v1 v2 ...`") from error
        if not vector or not all(map(math.isfinite, vector)):
            raise ImportRefusedError(f"{file}, line {number}: {line[:200]!r} has no vector of finite numbers")
        if len(vector) != (length := length or len(vector)):
            raise ImportRefusedError(f"{file}, line {number}: {len(vector)} values, the lines before have {length}")
        yield number, path.strip(), vector


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbers from 1 and stripped lines; empty ones are passed over."""
    number = 0
    try:
        with file.open("rb") as content:
            while line := content.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ImportRefusedError(f"{file}, line {number}: longer than {MAX_LINE_BYTES} bytes")
                if b"\0" in line:
                    raise ImportRefusedError(f"{file}, line {number}: not text")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, text
    except UnicodeDecodeError as error:
        raise ImportRefusedError(f"{file}, line {number}: not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ImportRefusedError(f"{file} cannot be read: {error.strerror}") from error
