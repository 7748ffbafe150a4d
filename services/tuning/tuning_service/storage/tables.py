"""The tables of the tuning service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import UtcDateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Metadata of this service."""


class StudyRow(Base):
    """One study. `change` counts the transactions that changed its trials."""

    __tablename__ = "studies"

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128))
    kind: Mapped[str] = mapped_column(sa.String(16))
    model_uid: Mapped[str] = mapped_column(sa.String(64), default="")
    model_name: Mapped[str] = mapped_column(sa.String(128), default="")
    owner: Mapped[str] = mapped_column(sa.String(256), index=True)
    # When the study was started: it may be of another user's model then.
    owner_is_administrator: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    request: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    group_id: Mapped[str] = mapped_column(sa.String(128))
    group_name: Mapped[str] = mapped_column(sa.String(128))
    seed: Mapped[int] = mapped_column(sa.BigInteger)
    known: Mapped[list[Any]] = mapped_column(sa.JSON)
    algorithm: Mapped[str] = mapped_column(sa.String(128), default="")
    objective_metric: Mapped[str] = mapped_column(sa.Text, default="")
    objective: Mapped[str] = mapped_column(sa.String(16), default="")
    most_trials: Mapped[int | None] = mapped_column(sa.Integer)
    warnings: Mapped[list[str]] = mapped_column(sa.JSON)
    upload: Mapped[str] = mapped_column(sa.Text, default="")
    upload_name: Mapped[str] = mapped_column(sa.Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    resumed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    run_seconds: Mapped[float] = mapped_column(sa.Float, default=0.0)
    status: Mapped[str] = mapped_column(sa.String(16))
    status_message: Mapped[str] = mapped_column(sa.Text, default="")
    stop_requested: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    is_exhausted: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    trials: Mapped[int] = mapped_column(sa.Integer, default=0)
    finished: Mapped[int] = mapped_column(sa.Integer, default=0)
    failed: Mapped[int] = mapped_column(sa.Integer, default=0)
    stopped: Mapped[int] = mapped_column(sa.Integer, default=0)
    best: Mapped[int] = mapped_column(sa.Integer, default=0)
    best_loss: Mapped[float | None] = mapped_column(sa.Double)
    improved_at: Mapped[int] = mapped_column(sa.Integer, default=0)
    change: Mapped[int] = mapped_column(sa.Integer, default=0)
    # Something of it has to be made true yet.
    is_tended: Mapped[bool] = mapped_column(sa.Boolean, default=True)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (
        sa.Index(
            "studies_live_name",
            "model_uid",
            "name",
            unique=True,
            sqlite_where=sa.text("deleted_at IS NULL"),
            postgresql_where=sa.text("deleted_at IS NULL"),
        ),
        sa.Index(
            "studies_tended",
            "is_tended",
            sqlite_where=sa.text("is_tended"),
            postgresql_where=sa.text("is_tended"),
        ),
    )


class TrialRow(Base):
    """One trial. `loss` is its first objective, the less the better; `change` the study's when this row last changed
    what algorithms see of it."""

    __tablename__ = "trials"

    study_uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    number: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    uid: Mapped[str] = mapped_column(sa.String(32), unique=True)
    values: Mapped[dict[str, Any]] = mapped_column("parameters", sa.JSON)
    place: Mapped[list[Any] | None] = mapped_column(sa.JSON)
    notes: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    status: Mapped[str] = mapped_column(sa.String(16))
    message: Mapped[str] = mapped_column(sa.Text, default="")
    stop_reason: Mapped[str] = mapped_column(sa.Text, default="")
    objectives: Mapped[list[float]] = mapped_column(sa.JSON)
    loss: Mapped[float | None] = mapped_column(sa.Double)
    metrics: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    curve: Mapped[list[Any]] = mapped_column(sa.JSON)
    attempts: Mapped[int] = mapped_column(sa.Integer, default=1)
    # Attempts that somebody killed.
    kills: Mapped[int] = mapped_column(sa.Integer, default=0)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    driver_id: Mapped[str] = mapped_column(sa.String(128), default="")
    earlier_uids: Mapped[list[str]] = mapped_column(sa.JSON)
    change: Mapped[int] = mapped_column(sa.Integer)

    __table_args__ = (
        sa.Index("trials_by_change", "study_uid", "change"),
        sa.Index("trials_by_status", "study_uid", "status", "number"),
        sa.Index("trials_by_loss", "study_uid", "loss"),
    )


class AlgorithmRow(Base):
    """An algorithm that a user installed."""

    __tablename__ = "algorithms"

    name: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    uid: Mapped[str] = mapped_column(sa.String(32), unique=True)
    path: Mapped[str] = mapped_column(sa.Text, default="")
    conda_home: Mapped[str] = mapped_column(sa.Text, default="")
    conda_environment: Mapped[str] = mapped_column(sa.Text, default="")
    remote_execution: Mapped[bool] = mapped_column(sa.Boolean, default=False)
    log_level: Mapped[str] = mapped_column(sa.String(16), default="INFO")
    creator: Mapped[str] = mapped_column(sa.String(256))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
