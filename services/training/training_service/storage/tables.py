"""The tables of the training service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import UtcDateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Metadata of this service."""


class RunColumns:
    """Columns that trainings and validations share."""

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128))
    model_uid: Mapped[str] = mapped_column(sa.String(64), index=True)
    model_name: Mapped[str] = mapped_column(sa.String(128))
    dataset_name: Mapped[str] = mapped_column(sa.String(128))
    owner: Mapped[str] = mapped_column(sa.String(256))
    group: Mapped[dict[str, Any]] = mapped_column("instance_group", sa.JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    job_id: Mapped[str] = mapped_column(sa.String(32), unique=True)
    framework: Mapped[str] = mapped_column(sa.String(64), server_default="PyTorch")
    status: Mapped[str] = mapped_column(sa.String(16), index=True)
    status_message: Mapped[str] = mapped_column(sa.Text, default="")
    progress: Mapped[int] = mapped_column(sa.Integer, default=0)
    driver_id: Mapped[str] = mapped_column(sa.String(128), default="")
    accepted: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    stop_requested: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    # Since when its model is known to be gone.
    orphaned_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class TrainingRow(RunColumns, Base):
    """One training."""

    __tablename__ = "trainings"
    __table_args__ = (
        sa.UniqueConstraint("model_uid", "name"),
        # Beside a model's few trainings there may be tens of thousands of trials.
        sa.Index("ix_trainings_lists", "model_uid", "study"),
    )

    dataset_uid: Mapped[str] = mapped_column(sa.String(64))
    dataset_hash: Mapped[str] = mapped_column(sa.String(128))
    dataset_type: Mapped[str] = mapped_column(sa.String(32), server_default="")
    data: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    hyperparameter: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    batch_size: Mapped[int] = mapped_column(sa.Integer)
    cluster_size: Mapped[int] = mapped_column(sa.Integer)
    gpu_percentage: Mapped[int] = mapped_column(sa.Integer)
    test_interval: Mapped[int] = mapped_column(sa.Integer)
    test_iterations: Mapped[int] = mapped_column(sa.Integer)
    sync_mode: Mapped[str] = mapped_column(sa.String(8))
    accelerator: Mapped[str] = mapped_column(sa.String(16), server_default="Native")
    workers: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    min_workers: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    command: Mapped[str] = mapped_column(sa.Text, server_default="")
    distribute_strategy: Mapped[str] = mapped_column(sa.String(64), server_default="")
    checkpoint_interval: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    checkpoints_kept: Mapped[int] = mapped_column(sa.Integer, server_default="2")
    max_restarts: Mapped[int] = mapped_column(sa.Integer, server_default="2")
    max_silent_seconds: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    priority: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    max_seconds: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    weights_url: Mapped[str] = mapped_column(sa.Text, server_default="")
    initial_weights: Mapped[str] = mapped_column(sa.Text)
    weights_folder: Mapped[str] = mapped_column(sa.Text)
    model_path: Mapped[str] = mapped_column(sa.Text)
    study: Mapped[str] = mapped_column(sa.String(128), server_default="")
    trial_number: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    user_defined: Mapped[dict[str, Any]] = mapped_column(sa.JSON, server_default="{}")
    gpus_per_worker: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    not_finite_series: Mapped[list[str]] = mapped_column(sa.JSON, server_default="[]")
    # A deleted trial, until it has ended.
    is_hidden: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false(), default=False, index=True)


class ValidationRow(RunColumns, Base):
    """One validation."""

    __tablename__ = "validations"
    __table_args__ = (sa.UniqueConstraint("model_uid", "name"),)

    training_uid: Mapped[str] = mapped_column(sa.String(32))
    training_name: Mapped[str] = mapped_column(sa.String(128))
    metrics: Mapped[list[str]] = mapped_column(sa.JSON)
    threshold: Mapped[float] = mapped_column(sa.Float)
    input_dir: Mapped[str] = mapped_column(sa.Text)
    dataset_type: Mapped[str] = mapped_column(sa.String(32), server_default="")
    inference_text: Mapped[str] = mapped_column(sa.Text, server_default="")
    max_silent_seconds: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    pairs: Mapped[list[list[str]]] = mapped_column(sa.JSON)


class RemovalRow(Base):
    """What is left of a deleted run."""

    __tablename__ = "removals"

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(16))
    name: Mapped[str] = mapped_column(sa.String(257))
    job_id: Mapped[str] = mapped_column(sa.String(32))


class DeletedTrialRow(Base):
    """A trial that was deleted, perhaps before it came."""

    __tablename__ = "deleted_trials"

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    deleted_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class MetricAttemptRow(Base):
    """Between which steps an attempt of a job has points, of any series."""

    __tablename__ = "metric_attempts"

    job_id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    attempt: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    first_step: Mapped[int] = mapped_column(sa.BigInteger)
    last_step: Mapped[int] = mapped_column(sa.BigInteger)


class MetricRow(Base):
    """One point of one series, keyed so that delivering it twice changes nothing."""

    __tablename__ = "metrics"
    # SQLite keeps the rows in the order of their key then: a curve is read in a third of the time.
    __table_args__ = {"sqlite_with_rowid": False}

    job_id: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    series: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    step: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column(sa.Double)
    time: Mapped[float] = mapped_column(sa.Double)
