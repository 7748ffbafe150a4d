"""Any text becomes tokens, known words one each; what an encoding says is the same wherever it was read."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import pytest
import torch
from dlmesh_sdk.table_datasets import Table
from dlmesh_sdk.text_encoding import BEGINNING, END, PADDING, TextEncoding, words_of


def table_of(folder: Path, *rows: list[str]) -> Table:
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return Table(folder / "rows.csv")


@pytest.fixture
def encoding(tmp_path: Path) -> TextEncoding:
    texts = ["The cat sat.", "the DOG sat", "a cat, a dog", "the end"]
    return TextEncoding.fit(table_of(tmp_path, ["text", "label"], *([text, text[:1]] for text in texts)), length=20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\r\n\u2028\u3000", []),
        ("Don't stop!", ["don", "'", "t", "stop", "!"]),
        ("ＡＢＣ １ ﬁne Straße", ["abc", "1", "fine", "strasse"]),
        ("naïve nai\u0308ve", ["naïve", "naïve"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("日本語。中文", ["日本語", "。", "中文"]),
        ("👍🏽 ok🙂", ["👍", "🏽", "ok", "🙂"]),
        ("a\x00b\ufeffc\u200bd", ["a", "bcd"]),
        ("\ud800x", ["x"]),
        ("\U000e0fff", ["\U000e0fff"]),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_known_words_are_one_token_and_others_are_spelled(encoding: TextEncoding) -> None:
    assert encoding.words == ("the", "a", "cat", "dog", "sat")
    assert {"e", "t", "a"} < set(encoding.characters)
    known = encoding.tokens("The  CAT")
    assert known[0] == BEGINNING
    assert len(known) == 3
    assert known == encoding.tokens("the cat")
    spelled = encoding.tokens("tea")
    assert len(spelled) == 5
    assert spelled[-1] == END
    # A character that is not known is its bytes: different ones stay different.
    strange = {tuple(encoding.tokens(text)) for text in ("λ", "μ", "語", "👍", "tea", "teat", "te a")}
    assert len(strange) == 7
    everything = [token for text in (*strange, known, spelled) for token in text]
    assert min(everything) > 0
    assert max(everything) < encoding.shape["tokens"]


def test_nothing_is_longer_than_the_length(encoding: TextEncoding) -> None:
    assert encoding.tokens("") == [BEGINNING]
    for text in ("cat " * 300, "x" * (1 << 20), "λ" * 300, "cat" * 300, "\x00" * (1 << 20) + "cat"):
        assert 1 <= len(encoding.tokens(text)) <= 20


def test_batches_are_padded(tmp_path: Path, encoding: TextEncoding) -> None:
    rows = encoding.rows(table_of(tmp_path, ["label", "text"], ["t", "the cat sat"], ["a", ""], ["t", "dog"]))
    tokens, labels = rows.collate([rows[number] for number in range(3)])
    assert (tokens.dtype, tuple(tokens.shape)) == (torch.int64, (3, 4))
    assert (tokens == PADDING).tolist() == [[False] * 4, [False] + [True] * 3, [False, False, True, True]]
    assert [encoding.target.labels[label] for label in labels] == ["t", "a", "t"]
    unlabelled = encoding.rows(table_of(tmp_path, ["text"], ["cat"]), has_target=False)
    assert unlabelled[0][1] == -1


def test_it_comes_back_from_json(encoding: TextEncoding) -> None:
    again = TextEncoding.from_json(json.loads(json.dumps(encoding.to_json())))
    assert again == encoding
    text = "The cat's λόγος ate a dog."
    assert again.tokens(text) == encoding.tokens(text) == pickle.loads(pickle.dumps(encoding)).tokens(text)


def test_the_longest_text_is_the_text(tmp_path: Path) -> None:
    header = ["title", "body", "score", "topic"]
    table = table_of(tmp_path, header, ["a", "a long body", "1", "x"], ["b", "another body", "2", "y"])
    assert TextEncoding.fit(table).column == "body"
    assert TextEncoding.fit(table, "body").column in ("title", "topic")
    assert TextEncoding.fit(table, text="title").column == "title"
    numbered = TextEncoding.fit(table, "score")
    assert (numbered.column, numbered.target.labels) == ("body", ("1", "2"))


@pytest.mark.parametrize(
    ("header", "target", "text", "words"),
    [
        (["text", "label"], "", "label", "cannot be both"),
        (["text", "label"], "", "body", "no column 'body'; its columns are 'text', 'label'"),
        (["text", "label"], "topic", "", "no column 'topic'"),
        (["label"], "", "", "no column of text beside 'label'"),
    ],
)
def test_columns_that_will_not_do(tmp_path: Path, header: list[str], target: str, text: str, words: str) -> None:
    table = table_of(tmp_path, header, ["a cat", "x"][: len(header)], ["a dog", "y"][: len(header)])
    with pytest.raises(ValueError, match=words):
        TextEncoding.fit(table, target, text)


def test_texts_by_mistake_are_no_labels(tmp_path: Path) -> None:
    rows = [[str(number % 2), f"text number {number}"] for number in range(50)]
    table = table_of(tmp_path, ["label", "text"], *rows)
    with pytest.raises(ValueError, match="column 'text' has 50 different values in 50 rows: these are no labels"):
        TextEncoding.fit(table)
    assert TextEncoding.fit(table, "label").target.labels == ("0", "1")
