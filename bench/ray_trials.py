"""Ray Tune running trials that sleep: `python ray_trials.py TRIALS PARALLEL SECONDS fresh|reused`, with Ray installed.

Each trial has a process of its own, as when nothing is said to Ray, or one of an earlier trial.
Prints when each trial began and ended. Meant for a network namespace of its own, whose loopback it brings up.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

_SET_FLAGS, _UP = 0x8914, 0x1


def bring_up_loopback() -> None:
    """As `ip link set lo up`, which need not be installed."""
    with socket.socket() as probe:
        fcntl.ioctl(probe, _SET_FLAGS, struct.pack("16sH14s", b"lo", _UP, b""))


def main(trials: int, parallel: int, seconds: float, *, reuse_actors: bool) -> None:
    bring_up_loopback()
    os.environ |= {
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    import ray
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=parallel,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            log_to_driver=False,
        )
        notes = Path(folder) / "notes"
        notes.mkdir()

        def trial(config: dict[str, float]) -> dict[str, float]:
            began = time.time()
            time.sleep(seconds)
            (notes / f"{os.getpid()}-{began}").write_text(json.dumps([began, time.time()]))
            return {"loss": (config["rate"] - 0.3) ** 2}

        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"rate": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(
                num_samples=trials,
                metric="loss",
                mode="min",
                max_concurrent_trials=parallel,
                reuse_actors=reuse_actors,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        tuner.fit()
        found = sorted(json.loads(path.read_text()) for path in notes.iterdir())
        if len(found) != trials:
            sys.exit(f"{len(found)} of {trials} trials")
        ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), reuse_actors=sys.argv[4] == "reused")
