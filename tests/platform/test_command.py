"""The `dlmesh` command: plain words and exit codes, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def dlmesh(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "dlmesh_platform.cli", *arguments],
        env={"PATH": "/usr/bin:/bin", "DLMESH_HOME": str(home), "DLMESH_HTTP_PORT": "1", "COLUMNS": "300"},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "serve"),
        (["user", "--help"], 0, "remove"),
        (["nonsense"], 2, "No such command"),
        (["logs", "nope"], 2, "there are gateway, datasets"),
        (["logs", "envoy"], 1, "has not been started"),
        (["status"], 1, "is it running?"),
        (["config"], 1, "no password"),
        (["user", "list"], 1, "no password"),
        (["group", "--help"], 0, "share"),
        (["group", "list"], 1, "no password"),
        (["group", "create", "g"], 2, "slots-per-host"),
        (["group", "create", "g", "--slots-per-host", "2", "--option", "x"], 2, "'x' is not KEY=VALUE"),
        (["group", "set", "g"], 2, "nothing to change"),
        (["group", "share", "g", "--remove"], 2, "whose share?"),
        (["kernel", "--help"], 0, "undeploy"),
        (["kernel", "list"], 1, "no password"),
        (["kernel", "deploy", "--path", "/nowhere"], 2, "nowhere"),
        (["kernel", "profile", "k", "--set", "kernel_min"], 2, "'kernel_min' is not SECTION.FIELD=VALUE"),
        (["search", "--help"], 0, "restart"),
        (["search", "list"], 1, "no password"),
        (["search", "show", "first", "--trials", "0"], 2, "trials"),
        (["queue", "--lines", "0"], 2, "lines"),
        (["queue"], 1, "no password"),
    ],
)
def test_words_and_exit_codes(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = dlmesh(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_port_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dlmesh_platform.cli", "serve"],
        env={"DLMESH_HOME": str(tmp_path), "DLMESH_HTTP_PORT": "many", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "DLMESH_HTTP_PORT: 'many' is not valid" in done.stderr


def test_write_digits(tmp_path: Path) -> None:
    assert dlmesh(tmp_path, "write-digits", "digits").returncode == 0
    assert len(list(tmp_path.glob("digits/*/*.png"))) == 1797


def test_logs_prints_the_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "models.log").write_text("one\ntwo\nthree\n")
    assert dlmesh(tmp_path, "logs", "models", "-n", "2").stdout == "two\nthree\n"
    assert dlmesh(tmp_path, "logs", "models", "-n", "0").stdout == ""
