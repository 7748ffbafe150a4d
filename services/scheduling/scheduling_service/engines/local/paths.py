"""Where the modules of the library lie that a keeper needs which is run as a file. Standard library only."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve()
# Beside this package where it is installed; in a checkout with the libraries.
_LIBRARIES = (_HERE.parents[3], _HERE.parents[5] / "libs" / "workerkit")
SHARED_FOLDERS = [str(found) for root in _LIBRARIES if (found := root / "workerkit" / "confinement").is_dir()]
