"""Where and as whom a rank runs: its control group, its cores, its user, and what it cannot reach.

Prepared by the keeper for the whole gang, entered by each rank before its program. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__:
    from workerkit.confinement import accounts, hiding

    from scheduling_service.engines.local import cgroups, cores, records
else:  # run as a file, without importing the package
    import accounts  # type: ignore[import-not-found,no-redef]
    import cgroups  # type: ignore[import-not-found,no-redef]
    import cores  # type: ignore[import-not-found,no-redef]
    import hiding  # type: ignore[import-not-found,no-redef]
    import records  # type: ignore[import-not-found,no-redef]

# When the machine has no memory left the kernel ends ranks before services and keepers, whose number is 0.
OOM_SCORE_ADJUSTMENT = "500"
_TEMPORARY = re.compile(r"dlmesh-rank-[0-9a-f]{32}")


@dataclass
class Places:
    """What the ranks of one gang have; `close` ends what is in the group and gives everything back."""

    directory: Path
    spec: Mapping[str, Any]
    account: accounts.Account | None = None
    group: Path | None = None
    cores: cores.Cores | None = None
    temporary: Path | None = None

    def prepare(self, group: Path | None, temporary: Path | None) -> None:
        """`group` is to be the gang's control group, None where there can be none, and `temporary` its `temporary_of`.
        accounts.RefusedError when the ranks can never run."""
        working_directory, home = Path(self.spec["working_directory"]).resolve(), self.home and self.home.resolve()
        if home in working_directory.parents and self._holds_records(working_directory):
            raise accounts.RefusedError(f"ranks cannot work in {working_directory}: it holds what their keeper records")
        self.account = accounts.find_account(self.spec.get("execution_user", ""))
        memory_bytes, cores_per_rank = self.memory_bytes, float(self.spec.get("cores_per_rank") or 0)
        if group is not None:
            try:
                self.group = cgroups.make(group.parent, group.name, self.spec["ranks"], memory_bytes, cores_per_rank)
            except OSError:
                cgroups.remove(group)
        if cores_per_rank and self.group is None:
            folder = self.home / "run" / "cores" if self.home else self.directory.parent / "cores"
            self.cores = cores.Cores(folder, self.spec["ranks"], cores_per_rank, os.sched_getaffinity(0))
        if temporary is not None:
            self._make_temporary(temporary)
        if self.account is not None:
            self._hand_over(self.account)

    @property
    def memory_bytes(self) -> int:
        """Most memory of a rank; 0 is unlimited."""
        return int(self.spec.get("memory_bytes_per_rank") or 0)

    @property
    def home(self) -> Path | None:
        """The platform's; None when nothing is to be hidden."""
        return Path(self.spec["home"]) if self.spec.get("home") else None

    def environment(self) -> dict[str, str]:
        """What the ranks find in their environment because of their place."""
        found = {} if self.account is None else self.account.environment(self.directory)
        return found if self.temporary is None else {**found, "TMPDIR": str(self.temporary)}

    def make_outputs(self) -> None:
        """Make the files of the ranks' output, before there is a program that could put links in their place."""
        for rank in range(self.spec["ranks"]):
            for stream in ("out", "err"):
                descriptor = open_output(self.directory / f"rank-{rank}.{stream}")
                if self.account is not None:
                    os.fchown(descriptor, self.account.uid, self.account.gid)
                os.close(descriptor)

    def enter(self, rank: int) -> None:
        """In the rank: be where and who it shall be. Ties to a parent must be made after this."""
        if self.group is not None:
            cgroups.enter(cgroups.of(self.group, rank))
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores.of_ranks[rank])
            self.cores.release()
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
            file.write(OOM_SCORE_ADJUSTMENT)
        if self.account is not None:
            self.account.become()

    def hide(self) -> None:
        """In the rank, last of all: give up what its program must not reach."""
        if self.home is None:
            return
        writable = [self.directory, Path(self.spec["working_directory"]), *map(Path, self.spec.get("data_roots", ()))]
        if self.temporary is not None:
            writable.append(self.temporary)
        writable = [path for path in writable if not self._holds_records(path.resolve())]
        # A virtual environment may lie in the home; what an earlier attempt left does.
        readable = [self.directory.parent, Path(sys.prefix), Path(sys.base_prefix)]
        hiding.hide(self.home, writable, readable)

    def killed_for_memory(self, rank: int) -> bool:
        """Whether the kernel ended the rank because it passed its limit."""
        return self.group is not None and cgroups.ran_out_of_memory(cgroups.of(self.group, rank))

    def close(self) -> None:
        """Remove what was made for the gang; its processes have ended."""
        if self.group is not None:
            cgroups.remove(self.group)
        if self.cores is not None:
            self.cores.release()
        if self.temporary is not None:
            # Imported where it is used: a cold keeper starts with as little as it can.
            import shutil

            shutil.rmtree(self.temporary, ignore_errors=True)

    def _make_temporary(self, temporary: Path) -> None:
        temporary.mkdir(mode=0o700)
        self.temporary = temporary
        if self.account is not None:
            os.chown(temporary, self.account.uid, self.account.gid)

    def _holds_records(self, path: Path) -> bool:
        kept = records.folder(self.directory).resolve()
        return path == kept or path in kept.parents

    def _hand_over(self, account: accounts.Account) -> None:
        accounts.share_directory(self.directory, account)
        working_directory = Path(self.spec["working_directory"]).resolve()
        # What services made for the run; folders elsewhere are as their owners want them.
        is_ours = self.home is not None and self.home.resolve() in working_directory.parents
        if is_ours and working_directory != self.directory.resolve():
            accounts.give_folder(working_directory, account)
        needed = [working_directory]
        if self.spec["command"][0] == "python":
            needed += [Path(os.path.realpath(sys.executable)), Path(sys.executable), Path(os.__file__)]
        closed = accounts.first_closed(account, needed)
        if closed:
            raise accounts.RefusedError(
                f"execution user {account.name!r} cannot read {closed}; ranks need {', '.join(map(str, needed[:2]))}"
            )


def temporary_of(spec: Mapping[str, Any]) -> Path | None:
    """Where the folder for temporary files of a gang is to be, whose name nobody can guess; None when it needs none.

    Beside a home below /tmp nothing new can be made; then the ranks have a folder for it.
    """
    home = Path(spec["home"]) if spec.get("home") else None
    usual = Path(spec["environment"].get("TMPDIR") or "/tmp").resolve()
    if home is None or usual not in home.resolve().parents or not home.is_dir():
        return None
    return usual / f"dlmesh-rank-{os.urandom(16).hex()}"


def is_temporary(path: Path) -> bool:
    """Whether it has the name of a `temporary_of`."""
    return path.is_absolute() and ".." not in path.parts and _TEMPORARY.fullmatch(path.name) is not None


def open_output(path: Path) -> int:
    """Open a rank's output for appending, made when missing; OSError when something else lies there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a plain file")
    os.set_blocking(descriptor, True)
    return descriptor
