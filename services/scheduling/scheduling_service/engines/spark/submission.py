"""How an attempt is handed to Spark: through the REST of a standalone master, else by `spark-submit`."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduling_service.engines.base import Attempt
from scheduling_service.engines.local import records
from scheduling_service.engines.spark.files import LOG_SETTINGS

VERSION = "4.3.0"
DRIVER_PROGRAM = Path(__file__).with_name("driver.py")
REST_PORT = "spark.master.rest.port"
DEFAULT_REST_PORT = 6066
TIMEOUT_SECONDS = 3.0
ANSWER_BYTES = 1 << 20
# Cut the start of a driver and an executor by a third: they run for one stage, nothing that a better compiler repays.
JAVA_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")
LOG4J = """\
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = ${sys:dlmesh.log}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{yy/MM/dd HH:mm:ss} %p %c{1}: %m%n%ex
"""
STANDALONE = re.compile(r"spark://([^:/,\s]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
KUBERNETES = re.compile(r"k8s://(https?://)?[^/\s:]+(:\d{1,5})?")
YARN = "yarn"
STANDALONE_DRIVER = re.compile(r"\w[\w.:-]{0,127}", re.ASCII)


class RefusedError(RuntimeError):
    """Spark will not take the submission, now or later."""


class UnreachableError(RuntimeError):
    """The master does not answer, or has no use for us just now."""


@dataclass(frozen=True)
class DriverState:
    """What the master says of a driver; `name` is NOT_FOUND when it does not know it."""

    name: str
    message: str = ""

    @property
    def is_over(self) -> bool:
        return self.name in {"FINISHED", "KILLED", "FAILED", "ERROR", "NOT_FOUND"}


def properties(attempt: Attempt) -> dict[str, str]:
    """Spark's settings of an attempt, those of its group last. No secret: Spark shows them on its pages and in logs."""
    kept = records.folder(attempt.directory)
    settings = {
        "spark.master": attempt.master_url,
        "spark.app.name": attempt.name or f"dlmesh {attempt.job_id}",
        "spark.submit.deployMode": "client",
        "spark.pyspark.python": sys.executable,
        "spark.pyspark.driver.python": sys.executable,
        # The driver sleeps most of the time; its memory and the executors' are those of the JVM, not of the ranks.
        "spark.driver.cores": "0",
        "spark.driver.memory": "512m",
        "spark.executor.memory": "512m",
        "spark.executor.cores": "1",
        "spark.cores.max": str(attempt.ranks),
        "spark.executor.instances": str(attempt.ranks),
        "spark.dynamicAllocation.enabled": "false",
        "spark.speculation": "false",
        # The whole gang or nothing: executors are waited for, and a stage that lacks them is tried again soon.
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",
        "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
        "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "1s",
        # A rank runs once; whether the gang is tried again is the queue's business.
        "spark.task.maxFailures": "1",
        "spark.stage.maxConsecutiveAttempts": "1",
        "spark.ui.port": "0",
        "spark.ui.showConsoleProgress": "false",
    }
    if gpus := gpus_of_rank(attempt):
        settings |= {"spark.executor.resource.gpu.amount": str(gpus), "spark.task.resource.gpu.amount": str(gpus)}
    settings |= attempt.options
    for role, log in (("driver", "driver.err"), ("executor", "executor-{{EXECUTOR_ID}}.log")):
        key = f"spark.{role}.extraJavaOptions"
        flags = [
            *JAVA_FLAGS,
            f"-Dlog4j2.configurationFile={(kept / LOG_SETTINGS).as_uri()}",
            f"-Ddlmesh.log={kept / log}",
        ]
        settings[key] = " ".join([*map(shlex.quote, flags), attempt.options.get(key, "")]).strip()
    return settings


def gpus_of_rank(attempt: Attempt) -> int:
    """Devices that Spark gives each rank. A group that has none runs the job without, and the warning says so."""
    if attempt.gpus:
        return max(1, math.ceil(len(attempt.gpus[0])))
    return 0 if attempt.warning else attempt.gpus_per_rank


def command(attempt: Attempt, spark_home: Path | None) -> list[str]:
    """`spark-submit` of an attempt for Kubernetes and YARN, which returns when the cluster has taken it."""
    settings = {**properties(attempt), "spark.submit.deployMode": "cluster"}
    program = str(DRIVER_PROGRAM)
    if attempt.master_url == YARN:
        # A driver of YARN takes a core at least, and its Python is named by the environment.
        settings["spark.driver.cores"] = attempt.options.get("spark.driver.cores", "1")
        settings["spark.yarn.submit.waitAppCompletion"] = "false"
        settings["spark.yarn.maxAppAttempts"] = "1"
        settings["spark.yarn.appMasterEnv.PYSPARK_PYTHON"] = sys.executable
    else:
        settings["spark.driver.cores"] = attempt.options.get("spark.driver.cores", "1")
        settings["spark.kubernetes.submission.waitAppCompletion"] = "false"
        settings["spark.kubernetes.driver.pod.name"] = pod_name(attempt)
        # In the images of driver and executors, as everything else that they need.
        program = f"local://{program}"
    submit = str(spark_home / "bin" / "spark-submit") if spark_home else "spark-submit"
    words = [submit, "--master", attempt.master_url, "--deploy-mode", "cluster", "--name", settings["spark.app.name"]]
    for key, value in sorted(settings.items()):
        if key not in {"spark.master", "spark.submit.deployMode", "spark.app.name", REST_PORT}:
            words += ["--conf", f"{key}={value}"]
    return [*words, program, str(attempt.directory)]


def pod_name(attempt: Attempt) -> str:
    """Of an attempt's driver: what is allowed in a name of Kubernetes, and unlike every other attempt's."""
    name = re.sub(r"[^a-z0-9-]", "-", attempt.job_id.lower())[:48].strip("-")
    return f"dlmesh-{name}-{attempt.number}"


def spark_home_of(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where `spark-submit` lies; None leaves it to the PATH."""
    return Path(environ["SPARK_HOME"]) if environ.get("SPARK_HOME") else None


class StandaloneMaster:
    """The submission REST of the master at `master_url`; every call answers within seconds or fails."""

    def __init__(self, master_url: str, options: Mapping[str, str]) -> None:
        match = STANDALONE.fullmatch(master_url)
        if match is None:
            raise RefusedError(f"{master_url} is not the URL of a standalone master: spark://HOST:PORT")
        self._url = f"http://{match[1]}:{options.get(REST_PORT, DEFAULT_REST_PORT)}/v1/submissions"

    def create(self, attempt: Attempt, settings: Mapping[str, str]) -> str:
        """Submit; the driver's id. RefusedError, or UnreachableError when to try again may help."""
        answer = self._call(
            "create",
            {
                "action": "CreateSubmissionRequest",
                "clientSparkVersion": VERSION,
                "mainClass": "org.apache.spark.deploy.SparkSubmit",
                "appResource": DRIVER_PROGRAM.as_uri(),
                # Without the master here Spark would run all of it in the driver.
                "appArgs": ["--master", attempt.master_url, str(DRIVER_PROGRAM), str(attempt.directory)],
                "sparkProperties": dict(settings),
                "environmentVariables": {},
            },
        )
        if not answer.get("success") or not isinstance(answer.get("submissionId"), str):
            raise UnreachableError(_words(answer))
        if STANDALONE_DRIVER.fullmatch(answer["submissionId"]) is None:
            raise RefusedError(f"it calls the driver {answer['submissionId'][:100]!r}, which is no part of an address")
        return str(answer["submissionId"])

    def state(self, driver_id: str) -> DriverState:
        """UnreachableError when it cannot be known now."""
        answer = self._call(f"status/{driver_id}")
        if "driverState" in answer:
            return DriverState(str(answer["driverState"]), str(answer.get("message") or ""))
        if answer.get("success") is False:
            return DriverState("NOT_FOUND", _words(answer))
        raise UnreachableError(_words(answer))

    def kill(self, driver_id: str) -> None:
        """Ask for the driver's end; UnreachableError when nobody heard it."""
        self._call(f"kill/{driver_id}", {})

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._url}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="GET" if body is None else "POST",
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                said = json.loads(answer.read(ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(ANSWER_BYTES).decode(errors="replace")
            if 400 <= error.code < 500:
                raise RefusedError(_message(text) or f"HTTP {error.code}") from error
            raise UnreachableError(f"HTTP {error.code} {_message(text)}".strip()) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreachableError(str(getattr(error, "reason", error)) or type(error).__name__) from error
        if not isinstance(said, dict):
            raise UnreachableError(f"its answer is not one of Spark's: {str(said)[:100]}")
        return said


def _words(answer: Mapping[str, Any]) -> str:
    return str(answer.get("message") or answer)[:300]


def _message(text: str) -> str:
    try:
        return _words(json.loads(text))
    except (ValueError, AttributeError):
        return text[:300]
