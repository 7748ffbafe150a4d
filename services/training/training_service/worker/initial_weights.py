"""Fetching the weights that a training starts from."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from training_service.domain.addresses import without_passwords

CONNECT_SECONDS, SILENCE_SECONDS = 15.0, 60.0
BLOCK_BYTES = 1 << 20
PRINT_SECONDS = 5.0
_WAIT_SECONDS = 0.2
# Too slow, too early, too many: another attempt may have more luck.
_PASSING = (408, 425, 429)
_DEFAULT_NAME = "weights.pth"
_MAX_NAME_CHARACTERS = 60


def fetch_weights(url: str, folder: Path) -> Path:
    """Download `url` (http or https) into `folder` once, by the first rank; its file, on every rank.

    The file is there whole or not at all. A refusal of the server (most of 4xx) ends the process with 65: repeating
    would not help; a failure on the way ends it with 1, and the next attempt tries again.
    """
    file = folder / _name_of(url)
    if os.environ.get("RANK", "0") == "0":
        if not file.exists():
            _download(url, file)
    else:
        # A failed download ends the whole gang.
        while not file.exists():
            time.sleep(_WAIT_SECONDS)
    return file


def _name_of(url: str) -> str:
    """The name of the file in the address, as far as it is one: a program may look at its end."""
    name = re.sub(r"[^\w. -]", "_", PurePosixPath(unquote(urlsplit(url).path)).name)[-_MAX_NAME_CHARACTERS:]
    return name.lstrip(". ") or _DEFAULT_NAME


def _download(url: str, file: Path) -> None:
    import requests

    shown = without_passwords(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.draft")
    try:
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, SILENCE_SECONDS)) as answer:
            if 400 <= answer.status_code < 500 and answer.status_code not in _PASSING:
                print(f"wtURL: {shown} answered {answer.status_code} {answer.reason}", file=sys.stderr)
                sys.exit(os.EX_DATAERR)
            answer.raise_for_status()
            with draft.open("wb") as sink:
                printed = time.monotonic()
                for block in answer.iter_content(BLOCK_BYTES):
                    sink.write(block)
                    if time.monotonic() - printed >= PRINT_SECONDS:
                        # A large file is no hung training.
                        printed = time.monotonic()
                        print(f"wtURL: {sink.tell()} bytes so far", flush=True)
                sink.flush()
                os.fsync(sink.fileno())
                size = sink.tell()
            promised = answer.headers.get("Content-Length")
            if promised and "Content-Encoding" not in answer.headers and size != int(promised):
                sys.exit(f"wtURL: {shown} ended after {size} of {promised} bytes")
    except requests.RequestException as error:
        sys.exit(f"wtURL: {shown} cannot be fetched: {without_passwords(str(error))}")
    draft.replace(file)
