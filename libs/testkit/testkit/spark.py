"""A real Spark cluster for tests: one a session, where there is a Java that Spark runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dlmesh_platform.spark_cluster import SparkCluster
from dlmesh_platform.spark_setup import ROOT, SparkSetupError, install_spark, java_home

WORKERS, CORES_PER_WORKER, WORKER_MEMORY_MB = 2, 2, 3072


def start_cluster(folder: Path) -> SparkCluster:
    """Master, two workers of two cores and history server on free ports; skips the test where Spark cannot run."""
    try:
        java_home()
        install_spark(ROOT / ".spark")
    except SparkSetupError as error:
        pytest.skip(str(error))
    cluster = SparkCluster(folder, ROOT / ".spark", usual_ports={})
    cluster.up(WORKERS, CORES_PER_WORKER, WORKER_MEMORY_MB)
    return cluster


@pytest.fixture(scope="session")
def spark_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    """For tests that leave it as it is; those that kill parts of it start their own with `start_cluster`."""
    cluster = start_cluster(tmp_path_factory.mktemp("spark"))
    yield cluster
    cluster.down()
