"""Texts of a table as tokens: words, characters where a word is not known, bytes where a character is not.

`TextEncoding.fit` learns words and characters from the training rows; `TextDataset` applies that to any rows with the
same columns. An encoding belongs to the weights that were learned with it: `to_json` is for the file beside them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from dlmesh_sdk.table_datasets import Table, TableRows, Target

# Tokens: padding, the beginning of a text, the end of a word that is spelled, 256 bytes, then characters, then words.
PADDING, BEGINNING, END = 0, 1, 2
_FIRST_BYTE = 3
_FIRST_CHARACTER = _FIRST_BYTE + 256
MAX_CHARACTERS = 4_000
MAX_WORDS = 30_000
MAX_WORD_CHARACTERS = 40
# What occurs once is spelled: that is how spelling is learned.
_LEAST = 2
# Words that are counted at most; what comes first beyond them is rare.
_MAX_COUNTED = 1_000_000
# Of a cell of a mebibyte no more is looked at, for each token that is wanted.
_CHARACTERS_PER_TOKEN = 32


class _Apart(dict[int, str]):
    """For str.translate: punctuation and symbols are words, control characters part them, what is invisible goes."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        parts = {"P": f" {character} ", "S": f" {character} ", "Cc": " ", "Cs": " ", "Cf": ""}
        self[code] = parts.get(kind, parts.get(kind[0], character))
        return self[code]


_APART = _Apart()


def words_of(text: str) -> list[str]:
    """Words and punctuation marks in their order, of any script, without regard to case and typographic variants."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_APART).split()


@dataclass(frozen=True)
class TextEncoding:
    """How a row becomes tokens: at most `length` of the text in `column`, the beginning included."""

    target: Target
    column: str
    length: int
    characters: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @classmethod
    def fit(cls, table: Table, target: str = "", text: str = "", length: int = 128) -> TextEncoding:
        """Learn it from the training rows: two passes, memory for the words only.

        `target` is the column of labels (the last one when empty), `text` that of the texts (when empty, the one with
        the longest texts). ValueError says what is wrong with either.
        """
        labels = Target.fit(table, target, "classification")
        position = _text_position(table, labels.name, text)
        counts: Counter[str] = Counter()
        for rows in table.chunks():
            for row in rows:
                _count(counts, words_of(row[position][: length * _CHARACTERS_PER_TOKEN]))
        characters: Counter[str] = Counter()
        for word, count in counts.items():
            for character in word:
                characters[character] += count
        words = Counter({word: count for word, count in counts.items() if len(word) <= MAX_WORD_CHARACTERS})
        return cls(
            target=labels,
            column=table.columns[position].name,
            length=length,
            characters=_most_common(characters, MAX_CHARACTERS),
            words=_most_common(words, MAX_WORDS),
        )

    @property
    def task(self) -> str:
        """As serving.json calls it."""
        return "text"

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of `build_model`: different tokens, tokens of a text at most, labels."""
        tokens = _FIRST_CHARACTER + len(self.characters) + len(self.words)
        return {"tokens": tokens, "length": self.length, "labels": len(self.target.labels)}

    def rows(self, table: Table, has_target: bool = True) -> TextDataset:
        """The rows of `table` as tensors."""
        return TextDataset(table, self, has_target)

    def tokens(self, text: str) -> list[int]:
        """Those of a text, 1 to `length`."""
        found = [BEGINNING]
        for word in words_of(text[: self.length * _CHARACTERS_PER_TOKEN]):
            if len(found) >= self.length:
                break
            if word in self._words:
                found.append(self._words[word])
            else:
                found += self._spelled(word)
        return found[: self.length]

    def to_json(self) -> dict[str, Any]:
        """Everything, for `from_json`."""
        return {
            "target": self.target.to_json(),
            "column": self.column,
            "length": self.length,
            "characters": "".join(self.characters),
            "words": list(self.words),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TextEncoding:
        """What `to_json` wrote."""
        return cls(
            target=Target.from_json(content["target"]),
            column=content["column"],
            length=int(content["length"]),
            characters=tuple(content["characters"]),
            words=tuple(content["words"]),
        )

    def _spelled(self, word: str) -> list[int]:
        spelled = []
        for character in word[: self.length]:
            if character in self._characters:
                spelled.append(self._characters[character])
            else:
                spelled += [_FIRST_BYTE + byte for byte in character.encode()]
        return [*spelled, END]

    @cached_property
    def _characters(self) -> dict[str, int]:
        return {character: token for token, character in enumerate(self.characters, _FIRST_CHARACTER)}

    @cached_property
    def _words(self) -> dict[str, int]:
        return {word: token for token, word in enumerate(self.words, _FIRST_CHARACTER + len(self.characters))}


class TextDataset(TableRows):
    """(tokens, label's index) of each row: int64 [T], in a batch [B, T] with PADDING at the ends."""

    def __init__(self, table: Table, encoding: TextEncoding, has_target: bool = True) -> None:
        super().__init__(table, encoding.target, has_target)
        self.encoding, self._text = encoding, table.position(encoding.column)

    def inputs(self, cells: Sequence[str]) -> Tensor:
        return torch.tensor(self.encoding.tokens(cells[self._text]), dtype=torch.int64)

    def collate(self, samples: list[tuple[Any, Any]]) -> tuple[Any, Tensor]:
        tokens, targets = zip(*samples, strict=True)
        batch: Tensor = default_collate(list(targets))
        return pad_sequence(list(tokens), batch_first=True, padding_value=PADDING), batch


def _text_position(table: Table, target: str, name: str) -> int:
    """The column that is asked for, else the one of text whose first cells are the longest."""
    if name:
        if name == target:
            raise ValueError(f"column {name!r} cannot be both the text and what is to be predicted")
        return table.position(name)
    columns = [
        position for position, column in enumerate(table.columns) if not column.is_number and column.name != target
    ]
    if not columns:
        raise ValueError(f"{table.path} has no column of text beside {target!r}, which is to be predicted")
    first = next(table.chunks())
    return max(columns, key=lambda position: sum(len(row[position]) for row in first))


def _count(counts: Counter[str], words: Iterable[str]) -> None:
    counts.update(words if len(counts) < _MAX_COUNTED else (word for word in words if word in counts))


def _most_common(counts: Counter[str], most: int) -> tuple[str, ...]:
    # By name where equally many: every worker must find the same.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(name for name, count in ranked[:most] if count >= _LEAST)
