"""Who reads records of users, to find a picture among them, reaches nothing else, and is not believed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inference_service.backends.base import ExportError
from inference_service.backends.program import example_of
from workerkit.confinement.hiding import supported_abi


@pytest.mark.skipif(not supported_abi(), reason="this kernel has no Landlock")
def test_who_reads_records_of_users_is_confined(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "digits" / "train"
    for each in (folder, folder.parent / "test"):
        each.mkdir(parents=True)
        (each / "file").write_text("seen")
    (tmp_path / "secret").write_text("secret")
    ways = {
        "own": f"open('{folder}/file').read()",
        "another": f"open('{folder.parent}/test/file').read()",
        "secret": f"open('{tmp_path}/secret').read()",
        "write": f"open('{folder}/new', 'w')",
        "memory": "len(bytearray(2 * 1024**3))",
        "output": "open('/dev/shm/dlmesh_test_example', 'wb', buffering=0).write(bytes(2000))",
    }
    program = (
        "import json, pathlib, sys\nfrom inference_service.backends.example_picture import confine\n"
        "confine(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 1000)\nfound = {}\n"
        "for name, way in json.loads(sys.argv[3]).items():\n"
        "    try:\n        found[name] = eval(way)\n"
        "    except BaseException as error:\n        found[name] = type(error).__name__\n"
        "print(json.dumps(found))"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path), json.dumps(ways)]
    try:
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    finally:
        Path("/dev/shm/dlmesh_test_example").unlink(missing_ok=True)
    refused = dict.fromkeys(("another", "secret", "write"), "PermissionError")
    assert found == {"own": "seen", **refused, "memory": "MemoryError", "output": 1000}


READER = """
import json, os, sys
sys.stdout.write(json.dumps(FORM) + chr(10) + ",".join(sorted(os.environ)))
"""


@pytest.mark.parametrize("form", [[], {"kind": "lmdb"}, {"kind": "none", "channels": 1, "height": 1, "width": 1}])
def test_what_a_reader_says_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable} -I\n" + READER.replace("FORM", repr(form)))
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ExportError, match="no picture can be read"):
        example_of(tmp_path, tmp_path)


def test_who_reads_records_gets_nothing_of_the_services_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable} -I\n" + READER.replace("FORM", "None"))
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("DLMESH_ADMIN_PASSWORD", "secret")
    _, names = example_of(tmp_path, tmp_path)
    assert "OMP_NUM_THREADS" in names.decode()
    assert "DLMESH" not in names.decode()
