"""The tables of the inference service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import UtcDateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Metadata of this service."""


class InferenceModelRow(Base):
    """One inference model."""

    __tablename__ = "inference_models"

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128), unique=True)
    owner: Mapped[str] = mapped_column(sa.String(256))
    source_model: Mapped[str] = mapped_column(sa.String(128))
    template_name: Mapped[str] = mapped_column(sa.String(128))
    dataset_name: Mapped[str] = mapped_column(sa.String(128))
    instance_group: Mapped[str] = mapped_column(sa.String(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    catalog_uid: Mapped[str] = mapped_column(sa.String(64))
    last_version: Mapped[int] = mapped_column(sa.Integer)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ModelVersionRow(Base):
    """One version of an inference model."""

    __tablename__ = "model_versions"

    model_uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    number: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    source_model: Mapped[str] = mapped_column(sa.String(128))
    training_name: Mapped[str] = mapped_column(sa.String(128))
    framework: Mapped[str] = mapped_column(sa.String(64))
    code_path: Mapped[str] = mapped_column(sa.Text)
    checkpoints_path: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    state: Mapped[str] = mapped_column(sa.String(16))
    status_message: Mapped[str] = mapped_column(sa.Text)
    percentage: Mapped[int] = mapped_column(sa.Integer)


class PredictionRow(Base):
    """One prediction."""

    __tablename__ = "predictions"

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128), unique=True)
    owner: Mapped[str] = mapped_column(sa.String(256))
    model_uid: Mapped[str] = mapped_column(sa.String(32))
    model_name: Mapped[str] = mapped_column(sa.String(128), index=True)
    group: Mapped[dict[str, Any]] = mapped_column("instance_group", sa.JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    job_id: Mapped[str] = mapped_column(sa.String(32), unique=True)
    threshold: Mapped[str] = mapped_column(sa.String(64))
    model_version: Mapped[int] = mapped_column(sa.Integer)
    input_path: Mapped[str] = mapped_column(sa.Text)
    samples: Mapped[list[dict[str, str]]] = mapped_column(sa.JSON)
    sample_count: Mapped[int] = mapped_column(sa.BigInteger)
    done: Mapped[int] = mapped_column(sa.BigInteger)
    status: Mapped[str] = mapped_column(sa.String(16), index=True)
    status_message: Mapped[str] = mapped_column(sa.Text)
    result_type: Mapped[str] = mapped_column(sa.String(16))
    result_file: Mapped[str] = mapped_column(sa.String(32))
    are_images: Mapped[bool] = mapped_column(sa.Boolean)
    driver_id: Mapped[str] = mapped_column(sa.String(128))
    accepted: Mapped[bool] = mapped_column(sa.Boolean)
    stop_requested: Mapped[bool] = mapped_column(sa.Boolean)
    best: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))


class KernelModelRow(Base):
    """One model with a kernel; pairs and the profile as `KernelProfile.as_json` makes them."""

    __tablename__ = "kernel_models"

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128), unique=True)
    owner: Mapped[str] = mapped_column(sa.String(256))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    kernel_path: Mapped[str] = mapped_column(sa.Text)
    weights: Mapped[str] = mapped_column(sa.Text)
    type: Mapped[str] = mapped_column(sa.Text)
    tag: Mapped[str] = mapped_column(sa.Text)
    runtime: Mapped[str] = mapped_column(sa.Text)
    schema_version: Mapped[str] = mapped_column(sa.Text)
    attributes: Mapped[list[Any]] = mapped_column(sa.JSON)
    environments: Mapped[list[Any]] = mapped_column(sa.JSON)
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    profile: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    state: Mapped[str] = mapped_column(sa.String(16))
    status_message: Mapped[str] = mapped_column(sa.Text)
