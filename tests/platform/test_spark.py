"""Spark's set-up and `dlmesh spark`: what is refused in one line, and how a cluster starts, is mended and stops."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import zipfile
from pathlib import Path

import psutil
import pytest
from dlmesh_platform import spark_command, spark_setup
from dlmesh_platform.spark_cluster import SparkCluster
from dlmesh_platform.spark_setup import SparkSetupError, install_spark, java_home
from testkit.spark import start_cluster
from typer.testing import CliRunner


def java(folder: Path, says: str) -> Path:
    """A folder whose `bin/java` says which version it is."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    program.chmod(0o755)
    return folder


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name in names:
            entry = tarfile.TarInfo(name)
            content = b"#!/bin/sh\necho 'version 4.3.0' >&2\n"
            if name.endswith(".zip"):
                library = io.BytesIO()
                with zipfile.ZipFile(library, "w") as made:
                    # With a line of which Python warns, as some of Spark's own are.
                    made.writestr("package/__init__.py", "VALUE = 7\nassert VALUE is 7\n")
                content = library.getvalue()
            entry.size, entry.mode = len(content), 0o755
            packed.addfile(entry, io.BytesIO(content))
    return path


WHOLE = [
    *(f"pyspark-{spark_setup.VERSION}/{name}" for name in ("deps/bin/spark-submit", "deps/bin/spark-class", "LICENSE")),
    *(f"pyspark-{spark_setup.VERSION}/{name}" for name in ("deps/sbin/x", "deps/jars/x.jar", "deps/licenses/x")),
    *(f"pyspark-{spark_setup.VERSION}/{name}" for name in ("lib/pyspark.zip", "NOTICE")),
]


@pytest.mark.parametrize(
    ("says", "works"),
    [('openjdk version "17.0.15" 2025-04-15', True), ('java version "1.8.0_1"', False), ("no such thing", False)],
)
def test_java_17_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, works: bool) -> None:
    home = java(tmp_path / "jdk", says)
    monkeypatch.setenv("JAVA_HOME", str(home))
    if works:
        assert java_home() == home
    else:
        with pytest.raises(SparkSetupError, match=r"needs Java 17 or newer: .*/bin/java says"):
            java_home()


def test_without_java_there_is_no_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SparkSetupError, match="no JAVA_HOME, and no java on the PATH"):
        install_spark(tmp_path / "spark")
    monkeypatch.setenv("DLMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(spark_command, "ROOT", tmp_path)
    result = CliRunner().invoke(spark_command.app, ["up"])
    assert result.exit_code == 1
    assert not (tmp_path / ".spark").exists()


def test_an_archive_becomes_a_distribution_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(java(tmp_path / "jdk", 'openjdk version "21"')))
    target = tmp_path / "spark"
    for packed, says in (
        (archive(tmp_path / "part.tar.gz", *WHOLE[:3]), "holds no pyspark-4.3.0/deps/sbin"),
        (archive(tmp_path / "climbs.tar.gz", "../../../climbed"), "cannot be unpacked"),
        (tmp_path / "none.tar.gz", "cannot be unpacked"),
    ):
        with pytest.raises(SparkSetupError, match=says):
            install_spark(target, packed)
        assert not target.exists()
        assert not list(tmp_path.glob(".spark-*"))
    assert not (tmp_path / "climbed").exists()
    install_spark(target, archive(tmp_path / "whole.tar.gz", *WHOLE))
    with zipfile.ZipFile(target / "python" / "lib" / "pyspark.zip") as library:
        assert library.namelist() == ["package/__init__.py", "package/__init__.pyc"]
    monkeypatch.syspath_prepend(str(target / "python" / "lib" / "pyspark.zip"))
    import package  # type: ignore[import-not-found]

    assert (package.VALUE, package.__file__) == (7, str(target / "python/lib/pyspark.zip/package/__init__.pyc"))
    # What is there is left alone, without a look at any archive.
    install_spark(target, tmp_path / "none.tar.gz")


@pytest.mark.slow
def test_what_does_not_run_of_a_cluster_is_started_again_and_only_its_own_processes_are_stopped(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "cluster"
    cluster = start_cluster(folder)
    try:
        before, ports = cluster.processes(), cluster.ports
        os.kill(before["worker-1"].pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(before["worker-1"].pid)], timeout=10)
        assert [name for name, daemon in cluster.processes().items() if not daemon.is_alive] == ["worker-1"]
        again = SparkCluster(folder, spark_setup.ROOT / ".spark")
        again.up(2, 2, 3072)
        after = again.processes()
        assert {name for name in after if after[name] != before[name]} == {"worker-1"}
        assert again.ports == ports
        assert sorted(again.down()) == ["history", "master", "worker-0", "worker-1"]
        assert not any(daemon.is_alive for daemon in after.values())
        assert again.down() == []
    finally:
        SparkCluster(folder, spark_setup.ROOT / ".spark").down()
