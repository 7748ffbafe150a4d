"""Settings of exec tasks, and the limits that they set."""

from __future__ import annotations

import pytest
from scheduling_service.exec_limits import ExecLimits


def test_limits_come_from_the_environment() -> None:
    assert ExecLimits.from_environment({}) == ExecLimits()
    variables = {"DLMESH_EXEC_MAX_UPLOAD_GIB": "0.5", "DLMESH_EXEC_MAX_DISK_GIB": "0"}
    found = ExecLimits.from_environment(variables | {"DLMESH_EXEC_STOP_GRACE_SECONDS": "30"})
    assert found == ExecLimits(max_upload_bytes=1 << 29, max_disk_bytes=0, stop_grace_seconds=30)


@pytest.mark.parametrize("text", ["-1", "many", "nan", "inf"])
def test_a_wrong_limit_names_its_variable(text: str) -> None:
    with pytest.raises(ValueError, match="DLMESH_EXEC_MAX_DISK_GIB"):
        ExecLimits.from_environment({"DLMESH_EXEC_MAX_DISK_GIB": text})
