"""TensorFlow programs with several workers, and with parameter servers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from servicekit.errors import invalid

from scheduling_service.domain.exec_plan import ExecPlan
from scheduling_service.domain.exec_spec import ExecSpec
from scheduling_service.exec_frameworks.base import ExecFramework, run_program_of

if TYPE_CHECKING:
    from scheduling_service.domain.exec_arguments import ExecArguments
    from scheduling_service.domain.instance_group import InstanceGroup
    from scheduling_service.usecases.exec_ports import ExecDescription


class DistTensorFlow(ExecFramework):
    """Ranks find each other by TF_CONFIG. With --numPs the first worker is the chief, the last ranks are the servers,
    and programs are also given --ps_hosts, --worker_hosts, --job_name and --task_id (the chief is worker 0 there)."""

    name = "disttensorflow"
    description = "A TensorFlow program with several workers, which find each other by TF_CONFIG, and parameter servers"
    examples = (
        "--exec-start disttensorflow --numWorker 2 --model-main mirrored.py",
        "--exec-start disttensorflow --numWorker 2 --numPs 1 --model-main servers.py",
    )
    backend = "TensorFlow"
    distributions = ("tensorflow", "tensorflow-cpu")
    distribute_strategy = "MultiWorkerMirroredStrategy"

    def plan(self, arguments: ExecArguments, group: InstanceGroup, task: ExecDescription) -> ExecPlan:
        workers, servers = arguments.workers or 1, arguments.parameter_servers or 0
        if servers and arguments.command:
            raise invalid("--numPs", servers, "0 with --user-cmd, whose command knows no roles")
        return ExecPlan(ranks=workers + servers, parameter_servers=servers)

    def run(self, spec: ExecSpec) -> None:
        from dlmesh_sdk import keras_multi_worker
        from workerkit import tensorflow_cluster

        tensorflow_cluster.prepare()
        rank, ranks, servers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), spec.parameter_servers
        if ranks == 1:
            super().run(spec)
            return
        hosts, _reserved = tensorflow_cluster.meet(rank, ranks)
        cluster, task = tensorflow_cluster.roles(hosts, rank, servers=servers)
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        if not servers:
            keras_multi_worker.mend_fit()
            super().run(spec)
            return
        folder = Path(os.environ.get("DLMESH_JOB_DIR") or spec.folder)
        tensorflow_cluster.end_with_the_chief(folder, rank, ranks, servers)
        run_program_of(spec, [*spec.arguments, *tensorflow_cluster.server_arguments(hosts, rank, servers)])
        tensorflow_cluster.has_ended(folder, rank)
