"""What an engine promises."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scheduling_service.domain.attempt_facts import AttemptFacts as AttemptFacts
from scheduling_service.domain.attempt_facts import ProcessFacts as ProcessFacts
from scheduling_service.domain.instance_group import InstanceGroup
from scheduling_service.domain.observation import Observation as Observation
from scheduling_service.domain.observation import Phase as Phase


@dataclass(frozen=True)
class Attempt:
    """One try at running a job's gang. `directory` is its own; the engine and the ranks write there.

    A rank that gives no sign of life for `max_silent_seconds` fails, and an attempt whose job's folder and working
    directory hold more than `max_disk_bytes` fails for good; 0 is never. `warning` opens the errors of rank 0.
    Each rank, with all it starts, has `memory_bytes_per_rank` and `cores_per_rank`, 0 is no limit, and runs as
    `execution_user`, our own user when empty. `master_url` and `options` are those of the instance group; `name` is for
    people.
    """

    job_id: str
    number: int
    directory: Path
    ranks: int
    gpus_per_rank: int
    command: Sequence[str]
    environment: Mapping[str, str]
    working_directory: str
    grace_seconds: float
    max_seconds: float
    warm: bool
    max_silent_seconds: float = 0.0
    max_disk_bytes: int = 0
    # Devices of each rank; None leaves the choice to the program, an empty list hides them all.
    gpus: Sequence[Sequence[int]] | None = None
    warning: str = ""
    name: str = ""
    memory_bytes_per_rank: int = 0
    cores_per_rank: float = 0.0
    execution_user: str = ""
    # Folders of users' data, which ranks may use wherever they lie.
    data_roots: Sequence[Path] = ()
    master_url: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


class Engine(ABC):
    """Runs gangs of ranks: all of a gang start, or none; when one fails all end.

    Every method may be repeated and may be called by a process that knows nothing of the calls before it: what an
    engine must remember it keeps beside the attempt's directory, where ranks cannot write it. Output of rank R goes to
    rank-R.out and rank-R.err in the directory.
    The contract tests in tests/test_engines.py run against every engine of the registry.
    """

    @abstractmethod
    async def launch(self, attempt: Attempt) -> None:
        """Start the attempt; launching one that was launched already changes nothing."""

    @abstractmethod
    async def observe(self, directory: Path) -> Observation:
        """What became of the attempt. Cheap: it is called several times a second."""

    @abstractmethod
    async def stop(self, directory: Path) -> None:
        """Ask the attempt to end: SIGTERM, its grace, then SIGKILL for whatever is left of its process tree."""

    @abstractmethod
    async def describe(self, directory: Path) -> AttemptFacts:
        """Where the attempt's processes run or ran and what they take; for people who look, so it may take a while."""

    @property
    def version(self) -> str:
        """Of what runs the gangs, for clients; empty when it cannot be known."""
        return importlib.metadata.version("dlmesh")

    def check_group(self, group: InstanceGroup) -> None:  # noqa: B027  most settings suit every engine
        """400 naming the field when no group of this engine may be so: its master URL, options or execution user."""

    def on_news(self, tell: Callable[[], None]) -> None:  # noqa: B027  who is looked at now and then need not tell
        """`tell` is to be called from the event loop when an attempt may have ended, as soon as the engine can know.

        Called once before `open`. Nobody relies on it: attempts are observed all the same.
        """

    async def open(self) -> None:  # noqa: B027  engines without preparations need none
        """Called once before the first launch."""

    async def close(self) -> None:  # noqa: B027
        """Called when the service ends; attempts go on."""
