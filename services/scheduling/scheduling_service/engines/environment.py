"""What user programs, and what runs on their behalf, inherit of the platform's environment."""

from __future__ import annotations

from collections.abc import Mapping

# Settings and passwords of the platform and of its database (PGPASSWORD), and how its interpreter is run.
WITHHELD_PREFIXES = ("DLMESH_", "PG")
WITHHELD = ("PYTHONSAFEPATH",)


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what is ours."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(WITHHELD_PREFIXES) and name not in WITHHELD
    }
