"""What programs of the original platform look for in their environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from dlmesh_sdk.fabric_zip import make_fabric_home

# How FabricModel programs call the libraries that our frameworks stand for.
_BACKENDS = {"PyTorch": "pytorch", "TensorFlow": "tensorflow"}


def program_environment(
    folder: Path,
    results: Path,
    data: Path,
    code: str,
    framework: str,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The variables of one rank of a run in `folder`, whose program, in `code`, writes into `results`.

    `data` is the folder of the dataset's splits; `environ` is what the engine gave the rank. FABRIC_HOME is made.
    """
    run = environ.get("DLMESH_JOB_ID") or folder.name
    fabric_home = str(make_fabric_home(folder / "fabric"))
    variables = {
        "DATA_DIR": str(data),
        "DATA_PATH": str(data),
        "DLI_DATA_FS": str(data),
        "DLI_CS_DATASTORE_META": "type=fs,data_path=.",
        "RESULT_DIR": str(results),
        "LOG_DIR": str(folder / "log"),
        "JOB_STATE_DIR": str(folder),
        # A run writes nowhere but in its own folder.
        "DLI_RESULT_FS": str(folder),
        "DLI_SHARED_FS": str(folder),
        "DLI_WORK_DIR": str(folder),
        "TRAINING_ID": folder.name,
        "DLI_EXECID": run,
        "DLI_LOGGER_LEVEL": "info",
        "FABRIC_HOME": fabric_home,
        "DLI_FABRIC_HOME": fabric_home,
        "MODEL_PATH": code,
        "FRAME_WORK": framework,
        # A worker of ours is one rank with one device.
        "WMLA_NWORKER": environ.get("WORLD_SIZE", "1"),
        "WMLA_WORKER_NDEVICE": "1",
    }
    if framework in _BACKENDS:
        variables["FABRIC_BACKEND"] = _BACKENDS[framework]
    return variables


def alone_in_a_gang(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a single rank needs to be a gang of one by `init_process_group`; nothing where there is a gang already."""
    if environ.get("WORLD_SIZE", "1") != "1" or "MASTER_ADDR" in environ:
        return {}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    gang = {"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    known = {name: environ.get(name, value) for name, value in gang.items()}
    return known | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
