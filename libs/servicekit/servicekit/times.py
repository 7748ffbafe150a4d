"""Times as the contract prints them."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The present as an aware UTC datetime."""
    return datetime.now(UTC)


def format_time(moment: datetime | None) -> str:
    """`YYYY-MM-DD HH:MM:SS` in UTC; empty for None."""
    # Thousands are printed at once, and strftime takes ten times as long.
    return "" if moment is None else moment.astimezone(UTC).isoformat(" ", "seconds")[:19]


def unix_milliseconds(moment: datetime | None) -> float:
    """Milliseconds since the epoch, 0 for None; a float because JSON prints 64-bit integers as strings."""
    return 0.0 if moment is None else float(int(moment.timestamp() * 1000))
