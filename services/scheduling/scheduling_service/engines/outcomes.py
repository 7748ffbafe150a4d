"""What the record of an attempt's end says, when it is one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servicekit.texts import storable

from scheduling_service.domain.job import Rank
from scheduling_service.domain.observation import Observation, Phase
from scheduling_service.engines.local import records

ENDS = (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.LOST)
NOT_OURS = "the record of the attempt is none of the platform's: something replaced it"
# As an engine calls an attempt, and why it ended.
NAME_CHARACTERS, REASON_CHARACTERS = 128, 2000


def not_ours(**names: Any) -> Observation:
    """Of an attempt whose records were replaced: final, for what happened cannot be known."""
    return Observation(Phase.FAILED, NOT_OURS, final=True, **names)


def observation_of(outcome: Mapping[str, Any], **names: Any) -> Observation:
    """How an attempt ended; `not_ours` when any of it has not the form that keepers write."""
    state, reason = outcome.get("state"), outcome.get("reason")
    failed_rank, final = outcome.get("failed_rank"), outcome.get("final", False)
    phase = next((end for end in ENDS if end.value == state), None)
    is_rank = failed_rank is None or (type(failed_rank) is int and failed_rank >= 0)
    ranks = [_rank_of(row) for row in records.rows_of(outcome)]
    found = [rank for rank in ranks if rank is not None]
    is_whole = isinstance(outcome.get("ranks"), list) and len(found) == len(outcome["ranks"])
    if phase is None or not isinstance(reason, str) or not is_rank or type(final) is not bool or not is_whole:
        return not_ours(**names)
    text = storable(reason[:REASON_CHARACTERS])
    return Observation(phase, text, tuple(found), failed_rank, final=final, **names)


def name_of(record: Mapping[str, Any] | None, key: str) -> str:
    """A name of the attempt's as it can be kept; empty when there is none."""
    name = (record or {}).get(key)
    return storable(name[:NAME_CHARACTERS]) if isinstance(name, str) else ""


def _rank_of(row: Mapping[str, Any]) -> Rank | None:
    code = row.get("exit_code")
    # A signal, or what a program says.
    is_code = code is None or (type(code) is int and -128 <= code <= 255)
    is_whole = is_code and 0 <= row["rank"] < 1 << 20
    return Rank(row["rank"], row["pid"], code, row.get("is_cause") is True) if is_whole else None
