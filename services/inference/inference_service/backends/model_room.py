"""Where a model's code runs: with a folder of its own and nothing of the platform. Copied into the model repository."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


class ModelRoom:
    """The folder `work` of one instance of a model, for whatever its code has to write.

    `home` is the platform's when the bundle lies in HOME/inference/repository/MODEL/VERSION/bundle, else None. The
    folder's name, MODEL@VERSION@PID, says whose it is: the service removes those of models that are gone, and the next
    process of a version those of killed ones.
    """

    def __init__(self, bundle: Path, model: str, version: str) -> None:
        self.bundle = bundle
        is_ours = [parent.name for parent in bundle.parents][2:4] == ["repository", "inference"]
        self.home = bundle.parents[4] if is_ours else None
        if self.home is None or not os.access(self.home / "inference", os.W_OK):
            self.work = Path(tempfile.mkdtemp(prefix="dlmesh-model-"))
            return
        root = self.home / "inference" / "rooms"
        root.mkdir(exist_ok=True)
        for folder in root.glob(f"{model}@{version}@*"):
            if not Path("/proc", folder.name.rpartition("@")[2]).exists():
                shutil.rmtree(folder, ignore_errors=True)
        self.work = root / f"{model}@{version}@{os.getpid()}"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(mode=0o700)

    def enter(self) -> None:
        """Give up, for this thread and all that it starts, what a model's code must not reach: passwords, databases,
        other jobs; and all writing but to `work` and devices. OSError when the kernel refuses."""
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.work)
        confine(self.home, self.work, self.bundle)

    def leave(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.work, ignore_errors=True)


def confine(home: Path | None, work: Path, bundle: Path) -> None:
    """As `ModelRoom.enter`, without a change of the environment."""
    try:
        from workerkit.confinement import hiding
    except ImportError:
        # In an image that is not ours the container is the fence.
        return
    if home is not None:
        # Of other models neither what they are made of nor what they are asked.
        hiding.hide(home, [work], [bundle.parent], changes_nothing_else=True, shared=hiding.SHARED_FOLDERS)
