"""What the service reads from the environment."""

from __future__ import annotations

import pytest
from servicekit.settings import SettingError
from tuning_service.settings import TuningSettings

UPLOAD, PLUGIN, GRACE = "DLMESH_TUNING_MAX_UPLOAD_MIB", "DLMESH_TUNING_PLUGIN_SECONDS", "DLMESH_ORPHAN_GRACE_SECONDS"


def test_numbers_are_read() -> None:
    assert TuningSettings.from_environment({}) == TuningSettings()
    given = {UPLOAD: "0.5", PLUGIN: "8", GRACE: "0"}
    assert TuningSettings.from_environment(given) == TuningSettings(2**19, 8.0, 0.0)
    assert TuningSettings.from_environment({UPLOAD: "1e-9"}).max_upload_bytes == 1


WRONG = [(name, text) for name in (UPLOAD, PLUGIN, GRACE) for text in ("-1", "many", "nan", "inf")]


@pytest.mark.parametrize(("name", "text"), [(UPLOAD, "0"), (PLUGIN, "0"), *WRONG])
def test_what_nothing_could_work_with_is_refused(name: str, text: str) -> None:
    with pytest.raises(SettingError, match=f"{name}: '{text}' is not valid; allowed: a number (above|of at least) 0"):
        TuningSettings.from_environment({name: text})
