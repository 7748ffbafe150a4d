"""The tables of the datasets service."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from servicekit.database import UtcDateTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Metadata of this service."""


class DatasetRow(Base):
    """One dataset."""

    __tablename__ = "datasets"
    __table_args__ = (sa.Index("ix_datasets_owner_name", "owner", "name"),)

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128), unique=True)
    owner: Mapped[str] = mapped_column(sa.String(256))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    job_id: Mapped[str] = mapped_column(sa.String(32), unique=True)
    group: Mapped[dict[str, Any]] = mapped_column("instance_group", sa.JSON)
    options: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    source_type: Mapped[str] = mapped_column(sa.String(32))
    backend: Mapped[str] = mapped_column(sa.String(32))
    status: Mapped[str] = mapped_column(sa.String(16), index=True)
    status_message: Mapped[str] = mapped_column(sa.Text)
    accepted: Mapped[bool] = mapped_column(sa.Boolean)
    stop_requested: Mapped[bool] = mapped_column(sa.Boolean)
    driver_id: Mapped[str] = mapped_column(sa.String(128))
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    records: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))


class RemovalRow(Base):
    """The files and the job of a dataset whose row has gone."""

    __tablename__ = "removals"

    uid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.String(32))
