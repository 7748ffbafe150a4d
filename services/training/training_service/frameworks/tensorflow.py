"""TensorFlow and Keras programs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from workerkit import tensorflow_cluster
from workerkit.program import run_program

from training_service.domain.specs import TrainingSpec, ValidationSpec
from training_service.frameworks.base import Framework

# As the contract names them; the first is meant where the model names none.
STRATEGIES = ("MultiWorkerMirroredStrategy", "ParameterServerStrategy")


class TensorFlow(Framework):
    """Several ranks find each other by TF_CONFIG: all are workers (MultiWorkerMirroredStrategy), unless the model's
    distribute strategy is ParameterServerStrategy: then the first rank is the chief, the last one the parameter server,
    and programs are also given --ps_hosts, --worker_hosts, --job_name and --task_id (the chief is worker 0 there).
    """

    name = "TensorFlow"
    weights = (
        r"model_epoch_final\.(keras|weights\.h5|h5)",
        r"[^.].*\.keras",
        r"[^.].*\.weights\.h5",
        r"[^.].*\.h5",
        r"[^.].*\.index",
        r"saved_model(\.pb)?",
    )
    weight_folders = ("saved_model",)

    def train(self, spec: TrainingSpec) -> None:
        tensorflow_cluster.prepare()
        rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        arguments = ["--train_dir", spec.train_dir, "--weights", spec.weights]
        # The ranks of an elastic program meet by other means.
        if ranks == 1 or spec.max_workers:
            run_program(spec.code, spec.program, arguments)
            return
        strategy = str(spec.parameters.get("distribute_strategy") or STRATEGIES[0])
        if strategy not in STRATEGIES:
            sys.exit(f"distributeStrategy: {strategy!r} is not known; known: {', '.join(STRATEGIES)}")
        servers = 1 if strategy == "ParameterServerStrategy" else 0
        hosts, _reserved = tensorflow_cluster.meet(rank, ranks)
        cluster, task = tensorflow_cluster.roles(hosts, rank, servers=servers)
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        if not servers:
            from dlmesh_sdk import keras_multi_worker

            keras_multi_worker.mend_fit()
            run_program(spec.code, spec.program, arguments)
            return
        arguments += tensorflow_cluster.server_arguments(hosts, rank, servers)
        folder = Path(os.environ.get("DLMESH_JOB_DIR") or Path(spec.train_dir).parent)
        tensorflow_cluster.end_with_the_chief(folder, rank, ranks, servers)
        run_program(spec.code, spec.program, arguments)
        tensorflow_cluster.has_ended(folder, rank)

    def infer(self, spec: ValidationSpec, output_file: str) -> None:
        tensorflow_cluster.prepare()
        super().infer(spec, output_file)
