"""What a framework of exec tasks has to know: how many ranks a task takes, and what is done in each of them."""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from servicekit.errors import invalid

from scheduling_service.domain.exec_plan import ExecPlan
from scheduling_service.domain.exec_spec import ExecSpec

if TYPE_CHECKING:
    # Ranks need none of it, and they start in milliseconds.
    from scheduling_service.domain.exec_arguments import ExecArguments
    from scheduling_service.domain.instance_group import InstanceGroup
    from scheduling_service.usecases.exec_ports import ExecDescription


class ExecFramework(ABC):
    """One framework. Its control-plane side imports nothing heavy; `run` is called in a rank's own process.

    `examples` are command lines as users write them. `backend` is what FRAME_WORK says, PyTorch, TensorFlow or nothing;
    `distributions` are the packages of which one is installed, and its version shown.
    """

    name: str
    description: str
    examples: Sequence[str]
    backend: str = ""
    distributions: ClassVar[Sequence[str]] = ()
    distribute_strategy: str = ""
    parameter_servers: int = 0
    # Whether ranks may be forks of the warm pool, which has torch imported.
    is_warm: ClassVar[bool] = False

    @property
    def version(self) -> str:
        """Of the library that programs find; empty when it is not installed."""
        import importlib.metadata

        for name in self.distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                return importlib.metadata.version(name)
        return ""

    @abstractmethod
    def plan(self, arguments: ExecArguments, group: InstanceGroup, task: ExecDescription) -> ExecPlan:
        """How the task is run; frozen when it is submitted. 400 for what the framework cannot do."""

    def run(self, spec: ExecSpec) -> None:
        """Run one rank to its end; SystemExit with the program's code when it fails.

        The environment says everything about the gang and the task; the working directory is not yet the program's.
        """
        run_program_of(spec, spec.arguments)


class SingleWorker(ExecFramework):
    """One rank."""

    def plan(self, arguments: ExecArguments, group: InstanceGroup, task: ExecDescription) -> ExecPlan:
        if (arguments.workers or 1) > 1 and not arguments.command:
            raise invalid("--numWorker", arguments.workers, f"1: {self.name} runs one worker, dist{self.name} more")
        refuse_servers(self.name, arguments)
        return ExecPlan(ranks=arguments.workers or 1, warm=self.is_warm)


class ManyWorkers(ExecFramework):
    """A gang of --numWorker ranks, one by default."""

    def plan(self, arguments: ExecArguments, group: InstanceGroup, task: ExecDescription) -> ExecPlan:
        refuse_servers(self.name, arguments)
        return ExecPlan(ranks=arguments.workers or 1, warm=self.is_warm)


class ElasticWorkers(ExecFramework):
    """1 to maxWorkers ranks of a FabricModel program: as many as --edt-options or --numWorker say, else all slots."""

    def plan(self, arguments: ExecArguments, group: InstanceGroup, task: ExecDescription) -> ExecPlan:
        refuse_servers(self.name, arguments)
        most = arguments.max_workers or arguments.workers or group.slots
        return ExecPlan(ranks=most, min_ranks=1, warm=self.is_warm)


def refuse_servers(name: str, arguments: ExecArguments) -> None:
    """400 for parameter servers where there can be none."""
    if arguments.parameter_servers:
        raise invalid("--numPs", arguments.parameter_servers, f"0: {name} has no parameter servers")


def run_program_of(spec: ExecSpec, arguments: Sequence[str]) -> None:
    """Run the program of the upload with `arguments`, in its folder: a Python file here, a shell script by bash."""
    from workerkit.command import run_command
    from workerkit.program import run_program

    if PurePosixPath(spec.program).suffix == ".sh":
        run_command(["bash", spec.program, *arguments], spec.code)
        return
    if (folder := Path(spec.code, spec.program).parent) != Path(spec.code):
        # As under `python FOLDER/FILE`.
        sys.path.insert(0, str(folder))
    run_program(spec.code, spec.program, arguments)
