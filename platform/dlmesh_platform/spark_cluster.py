"""A Spark standalone cluster on this machine, for trials and tests: master, workers and history server on loopback.

What runs is kept in `cluster.json` of its folder, so that whoever comes later finds it, starts what is missing on the
same ports, and stops these processes and no others.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from servicekit.folders import write_file

from dlmesh_platform.endpoints import free_port, is_free
from dlmesh_platform.spark_setup import SparkSetupError, java_home

HOST = "127.0.0.1"
STATE_FILE = "cluster.json"
MASTER, HISTORY = "master", "history"
CLASSES = {
    MASTER: "org.apache.spark.deploy.master.Master",
    "worker": "org.apache.spark.deploy.worker.Worker",
    HISTORY: "org.apache.spark.deploy.history.HistoryServer",
}
# Spark's own ports; a worker's are any.
PORTS = {"master": 7077, "rest": 6066, "ui": 8080, "history": 18080}
START_SECONDS, STOP_SECONDS = 60.0, 15.0
DAEMON_OPTIONS = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:CICompilerCount=1 -XX:-UsePerfData"


@dataclass(frozen=True)
class Daemon:
    """A process of the cluster; with the time at which it was started its pid is nobody else's."""

    pid: int
    started_at: float

    @property
    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started_at and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class SparkCluster:
    """The cluster whose state and logs lie in `folder`; `spark_home` is where Spark is installed.

    `usual_ports` are taken when they are free; what is not named there, or taken, gets a free port.
    """

    def __init__(self, folder: Path, spark_home: Path, usual_ports: Mapping[str, int] = PORTS) -> None:
        self._folder, self._spark_home, self._usual_ports = folder, spark_home, usual_ports
        self._state: dict[str, Any] = {"ports": {}, "processes": {}}
        if (folder / STATE_FILE).exists():
            self._state = json.loads((folder / STATE_FILE).read_text())

    @property
    def master_url(self) -> str:
        return f"spark://{HOST}:{self.ports['master']}"

    @property
    def master_ui(self) -> str:
        return f"http://{HOST}:{self.ports['ui']}"

    @property
    def history_url(self) -> str:
        return f"http://{HOST}:{self.ports['history']}"

    @property
    def ports(self) -> Mapping[str, int]:
        return dict(self._state["ports"])

    @property
    def engine_options(self) -> dict[str, str]:
        """What an instance group on this cluster needs beyond the master's URL."""
        return {
            "spark.master.rest.port": str(self.ports["rest"]),
            "spark.eventLog.enabled": "true",
            "spark.eventLog.dir": (self._folder / "events").as_uri(),
        }

    def processes(self) -> dict[str, Daemon]:
        """By name: `master`, `worker-0` ..., `history`; also those that have ended without being stopped."""
        return {name: Daemon(**row) for name, row in self._state["processes"].items()}

    def up(self, workers: int, cores: int, memory_mb: int) -> None:
        """Start what does not run, on the ports it had; each worker has `cores` and `memory_mb` for drivers and
        executors. SparkSetupError with the end of its log when something does not start."""
        java = java_home()
        for name in ("log", "events", "recovery", "work", "conf"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        alive = {name for name, daemon in self.processes().items() if daemon.is_alive}
        self._choose_ports(alive)
        ports = self.ports
        arguments = {
            MASTER: ["--host", HOST, "--port", str(ports["master"]), "--webui-port", str(ports["ui"])],
            HISTORY: [],
        }
        for number in range(workers):
            work = self._folder / "work" / str(number)
            arguments[f"worker-{number}"] = ["--host", HOST, "--cores", str(cores), "--memory", f"{memory_mb}m"]
            arguments[f"worker-{number}"] += ["--work-dir", str(work), "--webui-port", "0", self.master_url]
        for name, words in arguments.items():
            if name not in alive:
                self._start(name, words, java)
        self._wait_for(MASTER, lambda: self._alive_workers() >= workers)
        self._wait_for(HISTORY, lambda: _get(f"{self.history_url}/api/v1/applications") is not None)

    def down(self) -> list[str]:
        """Stop them, workers first; the names of those that ran."""
        ran = []
        for name, daemon in sorted(self.processes().items(), reverse=True):
            if daemon.is_alive:
                ran.append(name)
                _end(daemon)
            del self._state["processes"][name]
            self._save()
        return ran

    def _choose_ports(self, alive: set[str]) -> None:
        ports = self._state["ports"]
        taken = set(ports.values())
        for name in PORTS:
            if (HISTORY if name == "history" else MASTER) in alive:
                continue
            port = ports.get(name) or self._usual_ports.get(name)
            ports[name] = port if port and is_free(port) else free_port(taken)
        self._save()

    def _start(self, name: str, arguments: list[str], java: Path) -> None:
        kind = name.partition("-")[0]
        log = self._folder / "log" / f"{name}.log"
        properties = self._folder / f"{name}.conf"
        properties.write_text("".join(f"{key} {value}\n" for key, value in self._properties(kind).items()))
        program = str(self._spark_home / "bin" / "spark-class")
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            program,
            [program, CLASSES[kind], "--properties-file", str(properties), *arguments],
            self._environment(java),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        started_at = psutil.Process(pid).create_time()
        self._state["processes"][name] = asdict(Daemon(pid, started_at))
        self._save()

    def _properties(self, kind: str) -> dict[str, str]:
        """The settings of a daemon, in the words of Spark."""
        if kind == MASTER:
            return {
                "spark.master.rest.enabled": "true",
                "spark.master.rest.host": HOST,
                "spark.master.rest.port": str(self.ports["rest"]),
                # A master that is started again knows its drivers, applications and workers.
                "spark.deploy.recoveryMode": "FILESYSTEM",
                "spark.deploy.recoveryDirectory": str(self._folder / "recovery"),
                # How long it waits for those that ended meanwhile.
                "spark.deploy.recoveryTimeout": "10s",
            }
        if kind == HISTORY:
            return {
                "spark.history.fs.logDirectory": (self._folder / "events").as_uri(),
                "spark.history.fs.update.interval": "2s",
                "spark.history.ui.port": str(self.ports["history"]),
            }
        # All that people read lies with the job; what a driver or an executor leaves here is not needed for long.
        return {
            "spark.worker.cleanup.enabled": "true",
            "spark.worker.cleanup.interval": "1800",
            "spark.worker.cleanup.appDataTtl": "86400",
        }

    def _environment(self, java: Path) -> dict[str, str]:
        """Nothing of ours: drivers and executors inherit what their worker has."""
        kept = {key: os.environ[key] for key in ("HOME", "LANG", "USER", "LD_LIBRARY_PATH") if key in os.environ}
        return {
            **kept,
            "PATH": os.environ.get("PATH", os.defpath),
            "JAVA_HOME": str(java),
            "SPARK_HOME": str(self._spark_home),
            "SPARK_CONF_DIR": str(self._folder / "conf"),
            "SPARK_LOCAL_IP": HOST,
            "SPARK_DAEMON_MEMORY": "320m",
            "SPARK_DAEMON_JAVA_OPTS": DAEMON_OPTIONS,
            "SPARK_NO_DAEMONIZE": "1",
        }

    def _alive_workers(self) -> int:
        answer = _get(f"{self.master_ui}/json/")
        return sum(worker["state"] == "ALIVE" for worker in answer["workers"]) if answer else 0

    def _wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            dead = [name for name, daemon in self.processes().items() if not daemon.is_alive]
            if dead or time.monotonic() > deadline:
                log = self._folder / "log" / f"{(dead or [name])[0]}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                said = f"{dead[0]} ended" if dead else f"{name} is not ready after {START_SECONDS:.0f} s"
                raise SparkSetupError(f"Spark's {said}; {log} ends with:\n{tail}")
            time.sleep(0.1)

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{STATE_FILE}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        write_file(draft, json.dumps(self._state, indent=1))
        draft.replace(self._folder / STATE_FILE)


def _end(daemon: Daemon) -> None:
    try:
        process = psutil.Process(daemon.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
    except psutil.NoSuchProcess:
        return


def _get(url: str) -> Any:
    """What it answers, as JSON; None while nothing does."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return json.load(answer)
    except (OSError, urllib.error.URLError, ValueError):
        return None
