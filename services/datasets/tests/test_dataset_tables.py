"""CSV datasets: imports, plugins and slices, with pandas as the reader that is not ours."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pandas as pd
import pytest
from dataset_fakes import FakeJobs, FakeModels, make_dataset
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.domain.request import DatasetRequest, ImportOptions
from datasets_service.domain.words import Backend, SourceType
from datasets_service.importers.base import ImportRefusedError
from datasets_service.importers.tables import TableImporter
from datasets_service.storage.files import DiskSources
from datasets_service.storage.repository import SqlStorage
from datasets_service.tables import delimited, plugin, records
from datasets_service.tables.cells import is_number, json_number
from datasets_service.tables.delimited import sniff_delimiter
from datasets_service.tables.records import read_slice
from datasets_service.wiring import build
from datasets_service.worker.import_dataset import import_dataset
from dlmesh.datasets.v1 import datasets_pb2 as pb
from dlmesh.datasets.v1 import datasets_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servicekit.database import Database
from servicekit.errors import Code, ServiceError
from servicekit.identity import acting_as
from servicekit.times import utc_now
from testkit.services import ALICE, BOB, running, settings_for

FIELDS = {"train": "train_path", "val": "validation_path", "test": "test_path"}


@dataclass
class Work:
    """Data root and home below `root`, and the imports that ran there."""

    root: Path
    runs: list[ImportSpec] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.root / "data"

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def check(self, **fields: str | int) -> ImportOptions:
        request = {"name": "t", "source_type": "CSV", "backend": "CSV", "instance_group": "local", **fields}
        return TableImporter().check(DatasetRequest(**request), DiskSources((self.data,)))  # type: ignore[arg-type]

    def spec(self, **fields: str | int) -> ImportSpec:
        uid = f"run{len(self.runs)}"
        spec = ImportSpec(
            uid=uid,
            name="t",
            source_type=SourceType.CSV,
            backend=Backend.CSV,
            options=self.check(**fields),
            data_roots=(str(self.data),),
            staging=str(self.root / "home" / "importing" / uid),
            target=str(self.root / "home" / uid),
        )
        Path(spec.staging).mkdir(parents=True)
        self.runs.append(spec)
        return spec

    def run(self, **fields: str | int) -> dict[str, Any]:
        return import_dataset(self.spec(**fields), lambda done, total: None)

    def table(self, content: bytes | str, **fields: str | int) -> Path:
        """The folder of the training split of this file."""
        self.write("t.csv", content)
        return Path(self.run(train_path="t.csv", **fields)["splits"]["train"]["path"]).parent

    def refusal(self, **fields: str | int) -> str:
        spec = self.spec(**fields)
        with pytest.raises(ImportRefusedError) as refused:
            import_dataset(spec, lambda done, total: None)
        assert not Path(spec.target).exists()
        return str(refused.value)

    def wrong(self, **fields: str | int) -> tuple[str, str]:
        """The field and what is allowed."""
        with pytest.raises(ServiceError) as refused:
            self.check(**fields)
        assert refused.value.code is Code.INVALID_ARGUMENT
        return refused.value.metadata["field"], refused.value.metadata["allowed"]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "data").mkdir()
    return Work(tmp_path)


def columns_of(folder: Path) -> dict[str, str]:
    return {column["name"]: column["type"] for column in json.loads((folder.parent / "columns.json").read_text())}


def everything(folder: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(read_slice(folder, 0, 10_000).json_text)
    return parsed


# What a number is


@pytest.mark.parametrize("cell", ["0", "-0", "1", "-12", "1.50", "0.5", ".5", "-.5", "5.", "1e5", "2E-3", " 7", "7 "])
def test_numbers(cell: str) -> None:
    assert is_number(cell)
    assert json.loads(json_number(cell)) == float(cell)


@pytest.mark.parametrize(
    "cell",
    ["", " ", "007", "-01", "1_000", "+49", "1,5", "nan", "inf", "1e999", "0x10", "-", ".", "1e", "1 2", "٣", "1\n"],
)
def test_what_is_no_number(cell: str) -> None:
    assert not is_number(cell)


def test_json_numbers_keep_their_digits() -> None:
    assert json_number("9007199254740993") == "9007199254740993"
    assert json_number(" 0.10000000000000000001") == "0.10000000000000000001"


# How a file is understood


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("a,b\n1,2\n", ","),
        ("a;b\n1,5;2,5\n", ";"),
        ("1,5;2,5\n3,5;4,5\n", ";"),
        ("a\tb\n1,2\t3\n", "\t"),
        ("a|b\n1|2\n", "|"),
        ("title,genres\nHeat,Action|Crime\nBig,Comedy|Drama\n", ","),
        ('a,b\n"x;y;z",1\n"p\nq",2\n', ","),
        ("a,b,c\n1,2,3\n1,2\n4,5,6\n", ","),
        ("text\nhello, world\n", ","),
        ("one\n", ","),
        ("", ","),
    ],
)
def test_the_delimiter_shows_by_the_first_rows(text: str, delimiter: str) -> None:
    file = io.BytesIO(text.encode())
    assert sniff_delimiter(file) == delimiter
    assert file.tell() == 0


def test_a_copy_has_commas_header_and_lf(work: Work) -> None:
    folder = work.table(b'\xef\xbb\xbfname;"a;b";n\r\n"x\r\ny";"say ""hi""";1\r\n\r\nM\xc3\xbcller, P;;2\r\n')
    assert (folder / "data.csv").read_bytes() == (b'name,a;b,n\n"x\r\ny","say ""hi""",1\n"M\xc3\xbcller, P",,2\n')
    assert columns_of(folder) == {"name": "text", "a;b": "text", "n": "number"}
    assert everything(folder)["data"] == [["x\r\ny", 'say "hi"', 1], ["Müller, P", None, 2]]


def test_without_a_header_columns_are_numbered(work: Work) -> None:
    folder = work.table("1,2.5,3\n4,,6\n")
    assert everything(folder) == {"columns": ["0", "1", "2"], "index": [0, 1], "data": [[1, 2.5, 3], [4, None, 6]]}
    assert (folder / "data.csv").read_text() == "0,1,2\n1,2.5,3\n4,,6\n"


def test_a_column_is_of_numbers_only_if_all_splits_say_so(work: Work) -> None:
    work.write("train.csv", "id,zip,n,none\n1,100,1,\n2,200,2,\n")
    work.write("val.csv", "id,zip,n,none\n3,007,1,\n")
    work.write("test.tsv", "id\tzip\tn\tnone\n3\t1\t1_000\t\n")
    description = work.run(train_path="train.csv", validation_path="val.csv", test_path="test.tsv")
    folder = Path(description["splits"]["train"]["path"]).parent
    assert columns_of(folder) == {"id": "number", "zip": "text", "n": "text", "none": "number"}
    assert everything(folder)["data"] == [[1, "100", "1", None], [2, "200", "2", None]]
    assert {split: one["count"] for split, one in description["splits"].items()} == {"train": 2, "val": 1, "test": 1}


def test_a_folder_is_read_by_name(work: Work) -> None:
    work.write("many/b.csv", "x,y\n2,b\n")
    work.write("many/a.TXT", "x;y\n1;a\n")
    work.write("many/c.tsv", "x\ty\n3\tc\n")
    work.write("many/.hidden.csv", "\0")
    work.write("many/notes.md", "\0")
    folder = Path(work.run(train_path="many")["splits"]["train"]["path"]).parent
    assert everything(folder)["data"] == [[1, "a"], [2, "b"], [3, "c"]]


def test_blank_cells_of_a_single_column_stay_rows(work: Work) -> None:
    folder = work.table('text\n""\n\n  \nx\n')
    assert everything(folder)["data"] == [[None], ["  "], ["x"]]
    assert (folder / "data.csv").read_text() == 'text\n""\n"  "\nx\n'


def test_the_hash_is_of_what_is_in_the_tables(work: Work) -> None:
    work.write("a.csv", "x,y\n1,a\n2,b\n")
    work.write("same.csv", '"x";y\r\n1;"a"\r\n\r\n2;b')
    work.write("part/1.csv", "x,y\n1,a\n")
    work.write("part/2.csv", "x,y\n2,b\n")
    work.write("cell.csv", "x,y\n1,a\n2,c\n")
    work.write("name.csv", "x,z\n1,a\n2,b\n")

    def digest(train: str, **more: str) -> str:
        return str(work.run(train_path=train, **more)["content_hash"])

    assert digest("a.csv") == digest("a.csv") == digest("same.csv") == digest("part")
    others = [digest("cell.csv"), digest("name.csv"), digest("a.csv", test_path="a.csv")]
    assert len({digest("a.csv"), digest("a.csv", validation_path="a.csv"), *others}) == 5


def test_progress_is_in_bytes(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_PROGRESS_ROWS", 10)
    sizes = [work.write(f"many/{name}.csv", "a,b\n" + "1,2\n" * 100).stat().st_size for name in "xyz"]
    seen: list[tuple[float, float]] = []
    import_dataset(work.spec(train_path="many", test_path="many/x.csv"), lambda done, total: seen.append((done, total)))
    done = [one for one, _ in seen]
    assert {total for _, total in seen} == {sum(sizes) + sizes[0]}
    assert done == sorted(done)
    assert len(set(done)) > 20
    assert done[-1] == sum(sizes) + sizes[0]


# What is refused

BIG_CELL = b"x" * (1024 * 1024 + 1)
REFUSED = [
    (b"", "t.csv is empty"),
    (b"\xef\xbb\xbf", "t.csv is empty"),
    (b"\n\r\n\n", "t.csv is empty"),
    (b"a,b\n", "t.csv has no rows"),
    (b"a,b\n1,2\n\n3\n", "t.csv, line 4: 1 cells, the header has 2"),
    (b'a,b\n"x\ny",2\n3,4,5\n', "t.csv, line 4: 3 cells, the header has 2"),
    (b"1,2\n3,4\n5,6,7\n", "t.csv, line 3: 3 cells, the first row has 2"),
    (b"a,b\n1,2\n3,\xff\n", "t.csv, byte 10: not UTF-8"),
    (b"\xef\xbb\xbfa,b\n1,\xc3(\n", "t.csv, byte 9: not UTF-8"),
    ("a,b\n1,2\n".encode("utf-16"), "t.csv, byte 0: not UTF-8"),
    (b"a,b\n1,2\n3,\0\n", "t.csv, line 3: a NUL character"),
    (b'a,b\n1,2\n"3,4\n5,6\n', "t.csv, line 3: a quoted cell does not end"),
    (b'a,b\n"1"x,2\n', "t.csv, line 2: ',' expected after '\"'"),
    (b"a,b\r1,2\r", "t.csv, line 1: a carriage return inside a line"),
    (b"a,a\n1,2\n", "t.csv: column 'a' is there twice"),
    (b"a,b\n1,2\n3," + BIG_CELL + b"\n", "t.csv, line 3: a cell is longer than 1048576 characters"),
    (b'a,b\n1,2\n3,"' + b"x\n" * 600_000, "t.csv, line 3: a cell is longer than 1048576 characters"),
    (b"a,b\n" + b"1," * (5 * 1024 * 1024), "t.csv, line 2: a row is longer than 8388608 bytes"),
    (b"a," * 100_001 + b"\n", "t.csv has 100002 columns"),
    (b"\x1f\x8b\x08\x00\x00", "t.csv, byte 1: not UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_bad_file_is_refused_with_the_place(work: Work, content: bytes, message: str) -> None:
    work.write("t.csv", content)
    assert message in work.refusal(train_path="t.csv")


def test_files_of_one_table_need_the_same_columns(work: Work) -> None:
    work.write("many/1.csv", "a,b\n1,2\n")
    work.write("many/2.csv", "a,c\n1,2\n")
    work.write("wide.csv", "a,b,c\n1,2,3\n")
    refusal = work.refusal(train_path="many")
    assert f"{work.data}/many/2.csv: column 2 is 'c', in {work.data}/many/1.csv it is 'b'" in refusal
    refusal = work.refusal(train_path="many/1.csv", test_path="wide.csv")
    assert "wide.csv has 3 columns" in refusal
    work.write("many/2.csv", "1,2\n")
    assert "many/2.csv: column 1 is '0'" in work.refusal(train_path="many")
    work.write("many/2.csv", "")
    assert "many/2.csv is empty" in work.refusal(train_path="many")


def test_files_may_have_any_name(work: Work) -> None:
    names = [b"a b.csv", b"\xff.csv", "ü\n.csv".encode()]
    (work.data / "many").mkdir()
    for number, name in enumerate(names):
        Path(os.fsdecode(bytes(work.data) + b"/many/" + name)).write_text(f"a\n{number}\n")
    folder = Path(work.run(train_path="many")["splits"]["train"]["path"]).parent
    assert sorted(everything(folder)["data"]) == [[0], [1], [2]]
    Path(os.fsdecode(bytes(work.data) + b"/many/\xff.csv")).write_text("")
    assert work.refusal(train_path="many").endswith("/many/\\udcff.csv is empty")


def test_links_and_pipes_in_a_folder_are_refused(work: Work) -> None:
    work.write("many/1.csv", "a,b\n1,2\n")
    outside = work.root / "secret.csv"
    outside.write_text("a,b\n1,2\n")
    link = work.data / "many" / "2.csv"
    link.symlink_to(outside)
    assert "many/2.csv lies outside the data roots" in work.refusal(train_path="many")
    link.unlink()
    link.symlink_to(work.data / "many" / "1.csv")
    assert work.run(train_path="many")["splits"]["train"]["count"] == 2
    link.unlink()
    os.mkfifo(link)
    assert "many/2.csv is not a file" in work.refusal(train_path="many")


def test_a_source_that_changed_after_the_check_is_refused(work: Work) -> None:
    work.write("t.csv", "a\n1\n")
    spec = work.spec(train_path="t.csv")
    (work.data / "t.csv").unlink()
    with pytest.raises(ImportRefusedError, match="cannot be read: No such file"):
        import_dataset(spec, lambda done, total: None)


def test_a_request_is_checked_field_by_field(work: Work) -> None:
    work.write("t.csv", "a\n1\n")
    work.write("empty/readme.md", "")
    work.write("hook.txt", "")
    (work.data / "out.csv").symlink_to("/etc/passwd")
    assert work.wrong()[0] == "trainpath"
    assert work.wrong(train_path="nowhere.csv") == ("trainpath", f"an existing path inside {work.data}")
    assert work.wrong(train_path="../x.csv")[0] == "trainpath"
    assert work.wrong(train_path="out.csv")[0] == "trainpath"
    assert work.wrong(train_path="t.csv", validation_path="/etc/passwd")[0] == "valpath"
    assert work.wrong(train_path="empty") == ("trainpath", "a file, or a folder of files ending with .csv, .tsv, .txt")
    assert work.wrong(train_path="t.csv", test_path="empty")[0] == "testpath"
    assert work.wrong(train_path="t.csv", plugin="nowhere.py")[0] == "plugin"
    assert work.wrong(train_path="t.csv", plugin="../hook.py")[0] == "plugin"
    assert work.wrong(train_path="t.csv", plugin="empty") == ("plugin", "a file")
    assert work.wrong(train_path="t.csv", plugin="hook.txt") == ("plugin", "a Python file, ending with .py")
    assert work.wrong(train_path="t.csv", mean_file="m.npy")[0] == "meanfilepath"
    for split, named in (("validation", "val"), ("test", "test")):
        wanted = (f"imagedetail.{named}percentage", f"0: rows are not split; {named}path names rows of {named}")
        assert work.wrong(train_path="t.csv", **{f"{split}_percentage": 10}) == wanted


# Plugins


def test_a_plugin_transforms_chunks_with_types(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "CHUNK_ROWS", 2)
    work.write(
        "hook.py",
        "import pandas as pd\nimport dataclasses\n\n"
        "@dataclasses.dataclass\nclass Seen:\n    rows: int = 0\n\n"
        "def transform_table(table):\n"
        "    assert len(table) <= 2 and list(table.index) == list(range(len(table)))\n"
        "    assert pd.api.types.is_numeric_dtype(table['n']) and not pd.api.types.is_numeric_dtype(table['zip'])\n"
        "    table = table[table['n'] > 0]\n"
        "    return table.assign(double=table['n'] * 2, zip=table['zip'].str.zfill(5))\n",
    )
    text = 'zip,n,note\n07,1,"a\r\nb"\n8,-1,x\n9,2,\n10,3.5,NA\nx,4,"q""q"\n'
    assert everything(work.table(text, plugin="hook.py")) == {
        "columns": ["zip", "n", "note", "double"],
        "index": [0, 1, 2, 3],
        "data": [["00007", 1, "a\r\nb", 2], ["00009", 2.0, None, 4.0], ["00010", 3.5, "NA", 7], ["0000x", 4, 'q"q', 8]],
    }


@pytest.mark.parametrize(
    "how", ["return table", "return iter([table[:1], table[1:]])", "yield table[:1]; yield table[1:]"]
)
def test_a_plugin_reads_any_format(work: Work, how: str) -> None:
    work.write("rows.bin", json.dumps([{"a": 2**60, "b": "x"}, {"a": 2, "b": None}]))
    work.write(
        "hook.py",
        "import pandas, json, pathlib\ndef read_table(path):\n"
        f"    table = pandas.DataFrame(json.loads(pathlib.Path(path).read_text()))\n    {how}\n",
    )
    description = work.run(train_path="rows.bin", test_path="rows.bin", plugin="hook.py")
    for split in ("train", "test"):
        assert everything(Path(description["splits"][split]["path"]).parent)["data"] == [[2**60, "x"], [2, None]]


def test_a_plugin_may_read_and_transform(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "CHUNK_ROWS", 3)
    (work.data / "any").mkdir()
    work.write(
        "hook.py",
        "import pandas\nlengths = []\n"
        "def read_table(path):\n    return pandas.DataFrame({'a': range(7)})\n"
        "def transform_table(table):\n    lengths.append(len(table))\n    return table.assign(chunk=len(lengths))\n",
    )
    folder = Path(work.run(train_path="any", plugin="hook.py")["splits"]["train"]["path"]).parent
    assert everything(folder)["data"] == [[0, 1], [1, 1], [2, 1], [3, 2], [4, 2], [5, 2], [6, 3]]


def test_the_plugin_is_in_the_hash(work: Work) -> None:
    work.write("t.csv", "a\n1\n")
    digests = {work.run(train_path="t.csv")["content_hash"]}
    for number in (1, 2):
        work.write("hook.py", f"VERSION = {number}\ndef transform_table(table):\n    return table\n")
        digests |= {work.run(train_path="t.csv", plugin="hook.py")["content_hash"] for _ in range(2)}
    assert len(digests) == 3


READ, TRANSFORM = "def read_table(path):\n    ", "def transform_table(table):\n    "
FRAMES = "import pandas\ndef frame(*names, value=1):\n    return pandas.DataFrame({name: [value] for name in names})\n"
BAD_PLUGINS = [
    ("x = 1\n", "must define the function read_table or transform_table, or both"),
    ("read_table = 5\n", "must define the function"),
    ("def read_table(:\n", "SyntaxError"),
    ("import nothing_of_this_name\n", "ModuleNotFoundError"),
    ("raise SystemExit(0)\n", "SystemExit: 0"),
    (TRANSFORM + "return 5\n", "transform_table gave int, not a pandas.DataFrame"),
    (TRANSFORM + "return None\n", "transform_table gave NoneType, not a pandas.DataFrame"),
    (TRANSFORM + "return table[[]]\n", "has 0 columns"),
    (TRANSFORM + "return table[table['a'] > 100]\n", "t.csv has no rows"),
    (TRANSFORM + "return table['nope']\n", "KeyError: 'nope'"),
    (TRANSFORM + "raise ValueError('\\udcff')\n", "ValueError: \\udcff"),
    (READ + "return None\n", "read_table gave NoneType, not a pandas.DataFrame or an iterator of them"),
    (READ + "return []\n", "t.csv has no table"),
    (READ + "return [None]\n", "read_table gave NoneType"),
    (READ + "return {'a': 1}\n", "read_table gave str"),
    (FRAMES + READ + "yield frame('a')\n    yield frame('b')\n", "table 2 of"),
    (FRAMES + READ + "yield frame('a')\n    raise ValueError('half way')\n", "ValueError: half way"),
    (FRAMES + READ + "return pandas.DataFrame([[1, 2]], columns=['a', 'a'])\n", "column 'a' is there twice"),
    (FRAMES + READ + "return frame('a', value='x\\0y')\n", "a NUL character"),
    (FRAMES + READ + "return frame('a', value='\\ud800')\n", "UnicodeEncodeError"),
    (FRAMES + READ + "return frame('a', value='x' * 2**21)\n", "field larger than field limit"),
    ("#" * 2**20 + "\n", "is larger than 1048576 bytes"),
]


@pytest.mark.parametrize(("source", "message"), BAD_PLUGINS, ids=[message for _, message in BAD_PLUGINS])
def test_a_bad_plugin_is_refused_by_name(work: Work, source: str, message: str) -> None:
    work.write("t.csv", "a,b\n1,2\n")
    work.write("hook.py", source)
    refusal = work.refusal(train_path="t.csv", plugin="hook.py")
    assert message in refusal
    assert "hook.py" in refusal


def test_a_plugin_sees_its_own_frames_only(work: Work) -> None:
    work.write("t.csv", "a\n1\n")
    work.write(
        "hook.py",
        "def inner(table):\n    return table['gone']\n\ndef transform_table(table):\n    return inner(table)\n",
    )
    refusal = work.refusal(train_path="t.csv", plugin="hook.py")
    path = work.data / "hook.py"
    assert refusal == (
        f"plugin {path} failed:\n"
        f'  File "{path}", line 5, in transform_table\n    return inner(table)\n           ^^^^^^^^^^^^\n'
        f"  File \"{path}\", line 2, in inner\n    return table['gone']\n           ~~~~~^^^^^^^^\n"
        "KeyError: 'gone'"
    )


def test_columns_may_not_change_between_chunks(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "CHUNK_ROWS", 2)
    work.write("t.csv", "a\n1\n2\n3\n")
    work.write("hook.py", TRANSFORM + "return table.rename(columns={'a': f'a{len(table)}'})\n")
    refusal = work.refusal(train_path="t.csv", plugin="hook.py")
    assert "table 2 of" in refusal
    assert "column 1 is 'a1'" in refusal
    assert "'a2'" in refusal


def test_pandas_is_for_plugins_only(work: Work) -> None:
    work.write("t.csv", "a\n1\n")
    spec = work.spec(train_path="t.csv")
    spec.write(work.root / "spec.json")
    source = (
        "import sys\nfrom pathlib import Path\nimport datasets_service.wiring\n"
        "import datasets_service.importers.tables\n"
        "from datasets_service.domain.import_spec import ImportSpec\n"
        "from datasets_service.worker.import_dataset import import_dataset\n"
        "import_dataset(ImportSpec.read(Path(sys.argv[1])), lambda done, total: None)\n"
        "sys.exit(bool({'pandas', 'numpy'} & set(sys.modules)))\n"
    )
    assert subprocess.call([sys.executable, "-c", source, str(work.root / "spec.json")]) == 0
    assert Path(spec.target, "train", "data.csv").exists()


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from datasets_service.domain.import_spec import ImportSpec
from datasets_service.tables import table_import
from datasets_service.worker import import_dataset as worker

point = sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if point == "columns":
    table_import.write_columns = die
if point == "publish":
    worker._publish = die
def progress(done, total):
    if point == "rows" and done > total / 2:
        die()
worker.import_dataset(ImportSpec.read(Path(sys.argv[1])), progress)
"""


@pytest.mark.parametrize("hook", ["", "hook.py"])
@pytest.mark.parametrize("point", ["rows", "columns", "publish"])
def test_a_kill_leaves_nothing_and_the_next_attempt_ends_well(work: Work, point: str, hook: str) -> None:
    work.write("t.csv", "a,b\n" + "".join(f"{row},{'x' * 50}\n" for row in range(20_000)))
    work.write("hook.py", TRANSFORM + "return table\n")
    spec = work.spec(train_path="t.csv", validation_path="t.csv", plugin=hook)
    spec.write(work.root / "spec.json")
    assert subprocess.call([sys.executable, "-c", KILLED_AT, work.root / "spec.json", point]) == -signal.SIGKILL
    assert not Path(spec.target).exists()
    assert list(Path(spec.staging, "records").iterdir())
    description = import_dataset(spec, lambda done, total: None)
    untouched = work.run(train_path="t.csv", validation_path="t.csv", plugin=hook)
    assert description["content_hash"] == untouched["content_hash"]
    assert description["size_bytes"] == untouched["size_bytes"]
    for split in ("train", "val"):
        kept, other = (Path(one["splits"][split]["path"]) for one in (description, untouched))
        assert kept.read_bytes() == other.read_bytes()
        assert (kept.parent / "rows.index").read_bytes() == (other.parent / "rows.index").read_bytes()


def test_a_large_import_needs_little_memory(work: Work) -> None:
    """40 MB of rows, in a process that may not grow by half of that."""
    row = ",".join(["1234567"] * 10) + "\n"
    with (work.data / "t.csv").open("w") as file:
        for _ in range(500):
            file.write(row * 1000)
    spec = work.spec(train_path="t.csv")
    spec.write(work.root / "spec.json")
    source = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from datasets_service.domain.import_spec import ImportSpec\n"
        "from datasets_service.tables import table_import\n"
        "from datasets_service.worker.import_dataset import import_dataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "import_dataset(ImportSpec.read(Path(sys.argv[1])), lambda done, total: None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown_kb = int(subprocess.check_output([sys.executable, "-c", source, str(work.root / "spec.json")]))
    assert grown_kb < 20_000
    assert Path(spec.target, "train", "data.csv").stat().st_size >= 40_000_000


# Slices


def test_a_slice_is_what_pandas_reads(work: Work) -> None:
    text = "id,score,name\n" + "".join(f"{row},{row / 7},n{row % 5}\n" for row in range(5000))
    folder = work.table(text)
    table = pd.read_csv(io.StringIO(text))
    for start, length in ((0, 10), (1234, 100), (4990, 100), (4999, 1), (0, 5000), (5000, 5), (2**31 - 1, 10_000)):
        expected = table.iloc[start : start + length]
        part = read_slice(folder, start, length)
        parsed = json.loads(part.json_text)
        assert parsed["columns"] == part.columns == list(table.columns)
        assert parsed["data"] == part.rows == expected.values.tolist()
        assert parsed["index"] == list(expected.index)
        assert part.start == start
        if len(expected):
            back = pd.read_json(io.StringIO(part.json_text), orient="split", precise_float=True)
            pd.testing.assert_frame_equal(back, expected, check_exact=True)


def test_the_text_of_a_slice_is_compact_and_exact(work: Work) -> None:
    folder = work.table('n,m,t\n9007199254740993,.5,"a""b\nü"\n,,\n')
    assert read_slice(folder, 0, 5).json_text == (
        '{"columns":["n","m","t"],"index":[0,1],"data":[[9007199254740993,0.5,"a\\"b\\nü"],[null,null,null]]}'
    )
    assert read_slice(folder, 2, 5).json_text == '{"columns":["n","m","t"],"index":[],"data":[]}'


CELLS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    st.sampled_from(
        ["", "0", "-1.5", "007", "1e3", "a,b", '"', "\r", "\n", "\r\n", ";", "\ufeff", " 5", "NA", "\u2028"]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """A header that is no numbers, and rows."""
    width = draw(st.integers(1, 4))
    header = [f"c{number}{draw(CELLS)}" for number in range(width)]
    return [header, *draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=30))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables(), first=st.integers(0, 32), length=st.integers(1, 32), small=st.booleans())
def test_any_table_comes_back_as_pandas_reads_it(
    monkeypatch: pytest.MonkeyPatch, table: list[list[str]], first: int, length: int, small: bool
) -> None:
    monkeypatch.setattr(records, "INDEXED_BYTES", 16 if small else 64 * 1024)
    source = io.StringIO()
    csv.writer(source, quoting=csv.QUOTE_ALL, lineterminator="\r\n" if small else "\n").writerows(table)
    with tempfile.TemporaryDirectory() as root:
        work = Work(Path(root))
        work.data.mkdir()
        folder = work.table(source.getvalue())
        part = read_slice(folder, first, length)
        ours = pd.read_csv(folder / "data.csv", dtype=str, keep_default_na=False)
        theirs = pd.read_csv(io.StringIO(source.getvalue(), newline=""), dtype=str, keep_default_na=False)
        kinds = columns_of(folder)
    assert part.columns == table[0]
    expected = [[cell or None for cell in row] for row in table[1:][first : first + length]]
    as_text = [
        [
            cell if kinds[name] == "text" or cell is None else float(cell)
            for name, cell in zip(table[0], row, strict=True)
        ]
        for row in expected
    ]
    assert part.rows == as_text
    assert json.loads(part.json_text)["data"] == as_text
    assert ours.values.tolist() == theirs.values.tolist() == table[1:]
    for position, name in enumerate(table[0]):
        assert (kinds[name] == "number") == all(not row[position] or is_number(row[position]) for row in table[1:])


def bytes_read() -> int:
    """By this process, from whatever it had open."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_the_end_of_a_large_file_is_read_without_the_rest(work: Work) -> None:
    folder = work.table("id,square,name\n" + "".join(f"{row},{row * row},name {row}\n" for row in range(300_000)))
    assert (folder / "data.csv").stat().st_size > 8_000_000
    assert (folder / "rows.index").stat().st_size < 4096
    before = bytes_read()
    part = read_slice(folder, 299_950, 100)
    assert bytes_read() - before < 200_000
    assert part.rows == [[row, row * row, f"name {row}"] for row in range(299_950, 300_000)]
    before = bytes_read()
    assert read_slice(folder, 150_000, 1).rows == [[150_000, 150_000**2, "name 150000"]]
    assert bytes_read() - before < 200_000


def test_a_slice_that_is_too_large_says_how_many_rows_fit(work: Work) -> None:
    folder = work.table("text\n" + f"{'x' * 1000}\n" * 5000)
    with pytest.raises(records.SliceTooLargeError) as refused:
        read_slice(folder, 10, 4000)
    fitting = refused.value.fitting
    assert 2000 < fitting < 2100
    assert 2_090_000 < len(read_slice(folder, 10, fitting).json_text.encode()) <= records.MAX_SLICE_BYTES
    with pytest.raises(records.SliceTooLargeError):
        read_slice(folder, 10, fitting + 1)
    wide = work.table(",".join(["1"] * 1000) + "\n" + (",".join(["1"] * 1000) + "\n") * 300)
    with pytest.raises(records.SliceTooLargeError) as refused:
        read_slice(wide, 0, 301)
    assert refused.value.fitting == 250


# Through the service


@dataclass
class Room:
    """The running service; its scheduling service is played."""

    stub: Any
    jobs: FakeJobs
    work: Work
    storage: SqlStorage

    async def create(self, name: str, **fields: Any) -> None:
        await self.stub.CreateDataset(
            pb.CreateDatasetRequest(name=name, backend="csv", source_type="csv", instance_group_id="local", **fields)
        )

    async def imported(self, name: str, **fields: Any) -> Any:
        """Create, and do what the engine does; the detail when it is FINISHED."""
        await self.create(name, **fields)
        await self.until(lambda: name in {request.dataset for request in self.jobs.requests.values()})
        job_id = next(id for id, request in self.jobs.requests.items() if request.dataset == name)
        spec = ImportSpec.read(Path(self.jobs.requests[job_id].command[-1]))
        await asyncio.to_thread(import_dataset, spec, lambda done, total: None)
        self.jobs.move(job_id, "FINISHED", started_at=utc_now(), ended_at=utc_now())
        return await self.until_status(name, "FINISHED")

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.02)

    async def until_status(self, name: str, status: str) -> Any:
        async with asyncio.timeout(10):
            while (detail := await self.stub.GetDataset(pb.GetDatasetRequest(name=name))).status != status:
                await asyncio.sleep(0.02)
        return detail

    async def slice(self, name: str, split: str, **fields: int) -> Any:
        return await self.stub.ReadCsv(pb.ReadCsvRequest(name=name, split=split, **fields))

    async def refused(self, name: str, split: str, **fields: int) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.slice(name, split, **fields)
        return caught.value.code().name, caught.value.details() or ""


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    service = settings_for("datasets", tmp_path)
    jobs = FakeJobs()
    async with running(build(service, jobs=jobs, models=FakeModels()), service) as client:
        database = Database(service.database_url, "datasets")
        with acting_as(ALICE):
            yield Room(client.stub(datasets_pb2_grpc.DatasetServiceStub), jobs, Work(tmp_path), SqlStorage(database))
        await database.close()


async def test_slices_through_the_service(room: Room) -> None:
    room.work.write("t/train.csv", "id,name,big\n" + "".join(f"{row},n{row},{2**53 + row}\n" for row in range(250)))
    room.work.write("t/val.csv", "id;name;big\n1;;1\n")
    detail = await room.imported("t", train_path="t/train.csv", validation_path="t/val.csv")
    assert (detail.source_type, detail.backend) == ("CSV", "CSV")
    assert Path(detail.train_path).read_text().startswith("id,name,big\n0,n0,")
    assert (list(detail.train_labels), detail.test_path) == ([], "")
    assert len(detail.content_hash) == 64
    part = await room.slice("t", "training")
    assert (list(part.columns), len(part.data)) == (["id", "name", "big"], 100)
    part = await room.slice("t", "Train", start=248, length=10)
    assert list(part.index) == ["248", "249"]
    assert [list(row) for row in part.data] == [[248, "n248", 2**53 + 248], [249, "n249", float(2**53 + 249)]]
    assert json.loads(part.json_text)["data"] == [[248, "n248", 2**53 + 248], [249, "n249", 2**53 + 249]]
    part = await room.slice("t", "VALIDATION", start=0, length=1)
    assert [list(row) for row in part.data] == [[1, None, 1]]
    part = await room.slice("t", "val", start=1)
    assert (list(part.columns), list(part.index), list(part.data)) == (["id", "name", "big"], [], [])
    assert json.loads(part.json_text) == {"columns": ["id", "name", "big"], "index": [], "data": []}


async def test_wrong_slices_are_refused(room: Room) -> None:
    room.work.write("t.csv", "text\n" + f"{'x' * 1000}\n" * 5000 + "\x01" * 500_000 + "\n")
    await room.imported("t", train_path="t.csv")
    for split in ("", "all"):
        code, message = await room.refused("t", split)
        assert code == "INVALID_ARGUMENT"
        assert "training, validation, test" in message
    assert await room.refused("t", "val") == ("NOT_FOUND", "split 't/val' does not exist")
    assert (await room.refused("nope", "val"))[0] == "NOT_FOUND"
    for fields in ({"start": -1}, {"length": 0}, {"length": -5}, {"length": 10_001}):
        code, message = await room.refused("t", "train", **fields)
        assert code == "INVALID_ARGUMENT"
        assert message.startswith(next(iter(fields)))
    code, message = await room.refused("t", "train", length=5000)
    assert code == "INVALID_ARGUMENT"
    fitting = int(message.split("1 to ")[1].split()[0])
    assert len((await room.slice("t", "train", length=fitting)).data) == fitting
    code, message = await room.refused("t", "train", start=5000)
    assert (code, message[:12]) == ("INVALID_ARGUMENT", "start: 5000 ")
    with acting_as(BOB):
        assert (await room.refused("t", "train"))[0] == "PERMISSION_DENIED"


async def test_slices_need_a_finished_csv_dataset(room: Room) -> None:
    room.work.write("t.csv", "a\n1\n")
    await room.create("t", train_path="t.csv")
    code, message = await room.refused("t", "train")
    assert code == "INVALID_ARGUMENT"
    assert "SUBMITTED" in message
    async with room.storage.transaction() as datasets:
        await datasets.add(make_dataset(name="pictures"))
    code, message = await room.refused("pictures", "train")
    assert code == "INVALID_ARGUMENT"
    assert "datasourcetype CSV, not IMAGEFORCLASSIFICATION" in message
    detail = await room.imported("gone", train_path="t.csv")
    for file in Path(detail.train_path).parent.iterdir():
        file.unlink()
    assert await room.refused("gone", "train") == ("NOT_FOUND", "dataset 'gone' does not exist")
