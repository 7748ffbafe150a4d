"""A study as its algorithm knows it: what is searched, what was tried, and what is to be tried next."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tuning_service.domain.space import Place, Space, Value


class TrialState(StrEnum):
    """As algorithms tell trials apart. What FAILED has losses if it was ended because it had no hope: those that it had
    reached."""

    PENDING = "PENDING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Evaluation:
    """A trial of the study as far as algorithms know it.

    `place` is what was suggested, `notes` what the algorithm wrote beside it. `losses` has one number an objective, the
    less the better, whatever the objective is called; None while there is none. `values` are the parameters that the
    trial was given, for algorithms that know nothing of places.
    """

    number: int
    place: Place
    state: TrialState
    losses: tuple[float, ...] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Value] | None = None


@dataclass(frozen=True)
class Suggestion:
    """A trial to run. `notes` come back with its evaluation: small, and what JSON can hold.

    The notes `resource` (a number: what the study's resource parameter shall be) and `parent` (the number of the trial
    that this one goes on from) mean something to the service, too. An algorithm that a user installed gives `values`,
    all that are searched, and no place.
    """

    place: Place
    notes: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Value] | None = None


@dataclass(frozen=True)
class Answer:
    """What is to be tried next. With fewer suggestions than asked for, `is_exhausted` says that there will never be
    another one; else there may be when a pending trial has ended."""

    suggestions: Sequence[Suggestion]
    is_exhausted: bool = False


@dataclass(frozen=True)
class Known:
    """What an earlier study found at a place of this one's space."""

    place: Place
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """A study as its algorithm knows it.

    `settings` are those of the registry's parameters, typed and complete. `objectives` is the number of losses,
    `max_trials` the most trials that will be run (None: nobody knows), `parallel` how many run at a time at most.
    `known` is from other studies, the best first: the losses tell where to look, and may be wrong here.
    """

    space: Space
    settings: Mapping[str, Any]
    seed: int
    objectives: int = 1
    max_trials: int | None = None
    parallel: int = 1
    known: Sequence[Known] = ()

    def seed_of(self, asked: int, purpose: str = "") -> int:
        """A seed for the ask after `asked` trials: the same when it is asked again after a restart."""
        digest = hashlib.sha256(f"{self.seed}/{asked}/{purpose}".encode()).digest()
        # What every library takes.
        return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF

    def random(self, asked: int, purpose: str = "") -> random.Random:
        """Random numbers from that seed."""
        return random.Random(self.seed_of(asked, purpose))
