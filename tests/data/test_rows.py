from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayestune.data.rows import open_rows, parse_line, read_lines_tolerant, read_rows
from bayestune.errors import ConfigError, DataError

ROWS = [{"text": "naïve 𝔸", "label": 0}, {"text": "a\u2028b", "label": 1}]


def as_bytes(rows, *, newline="\n", bom=False, blank=False) -> bytes:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if blank:
        lines = [line for row in lines for line in (row, "", "  ")]
    return (("\ufeff" if bom else "") + newline.join(lines)).encode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json-lines", ".JSONL"])
def test_jsonl_with_bom_and_crlf(write, newline, bom, suffix):
    path = write(f"a{suffix}", as_bytes(ROWS, newline=newline, bom=bom))
    assert list(read_rows(path)) == [(1, ROWS[0]), (2, ROWS[1])]


def test_blank_lines_are_skipped_but_counted(write):
    path = write("a.jsonl", as_bytes(ROWS, blank=True))
    assert [number for number, _ in read_rows(path)] == [1, 4]


def test_limit_stops_before_what_follows(write):
    path = write("a.jsonl", as_bytes(ROWS) + b"\n\xff\xff broken")
    assert list(read_rows(path, limit=2)) == [(1, ROWS[0]), (2, ROWS[1])]
    with pytest.raises(DataError, match="line 3"):
        list(read_rows(path, limit=3))
    with pytest.raises(ConfigError, match="limit is 0"):
        list(read_rows(path, limit=0))


GOOD = b'{"text": "a", "label": 0}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', r"not UTF-8 \(byte 0xff at position 11\)"),
        (b"\x00\x01\x02", "NUL bytes"),
        (b"[1, 2]", "expected a JSON object, got a list"),
        (b'"text"', "got a string"),
        (b"3", "got a number"),
        (b"true", "got a boolean"),
        (b"null", "got null"),
        (b'{"text": "a', "breaks off"),
        (b'{"text": "a",', "breaks off"),
        (b'{"text"', "breaks off"),
        (b"{text: 1}", "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "Extra data at column 10"),
        (b'{"text": "a", "text": "b"}', "'text' stands twice"),
        (b'{"x": {"y": 1, "y": 2}}', "'y' stands twice"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not usable JSON"),
        (b"[" * 100_000, "not usable JSON"),
        (b"{", "only '{'; write one JSON object per line"),
    ],
)
def test_bad_json_line_is_named(write, line, message):
    path = write("train.jsonl", GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=message) as error:
        list(read_rows(path))
    assert str(error.value).startswith(f"{path} line 3: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_named(write, encoding):
    path = write("a.jsonl", "\ufeff".encode(encoding) + '{"a": 1}\n'.encode(encoding))
    with pytest.raises(DataError, match=r"line 1: the file is UTF-16"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b""), ("b.jsonl", b"\n \r\n"), ("c.csv", b"text,label\n")]
)
def test_empty_file(write, name, content):
    path = write(name, content)
    with pytest.raises(DataError, match=f"{name}: has no rows"):
        list(read_rows(path))


def test_missing_file_suggests_the_one_beside_it(write, tmp_path):
    write("train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no such file. Did you mean 'train.jsonl'\?"):
        list(read_rows(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / "gone" / "x.jsonl"))


def test_directory_and_unknown_suffix(write, tmp_path):
    with pytest.raises(DataError, match="is a directory"):
        list(read_rows(tmp_path))
    path = write("a.json", ROWS)
    with pytest.raises(DataError, match=r"'.json'. Write one JSON object per line"):
        list(read_rows(path))
    with pytest.raises(DataError, match=r"suffix ''.* Valid: '.jsonl'"):
        list(read_rows(write("bare", ROWS)))


def test_explicit_suffix_overrides_the_name(write):
    path = write("rows.txt", ROWS)
    assert len(list(open_rows(path, ".jsonl").rows)) == 2


def test_unreadable_file(write, monkeypatch):
    path = write("a.jsonl", ROWS)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read \(Permission denied\)"):
        list(read_rows(path))


def test_csv_quotes_newlines_and_line_numbers(write):
    content = '\ufeff text ,label\r\n"one, ""two""\r\nthree",a\r\n\r\nfour,b\r\n'
    path = write("a.csv", content)
    assert list(read_rows(path)) == [
        (2, {"text": 'one, "two"\r\nthree', "label": "a"}),
        (5, {"text": "four", "label": "b"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,0\nb\n", "line 3: 1 cells, but the header names 2"),
        (b"text,label\na,b,0\n", "line 2: 3 cells"),
        (b"text,text\na,b\n", "line 1: the header names 'text' twice"),
        (b"text,\na,b\n", "line 1: column 2 of the header has no name"),
        (b'text,label\na,0\n"b,0\n', "line 3: not valid CSV"),
        (b'text,label\n"b"c,0\n', "line 2: not valid CSV"),
        (b"text,label\na,0\n\xe9,1\n", "line 3: not UTF-8"),
        (b"text,label\na\x00,0\n", "line 2: contains NUL"),
        (b"text,label\n" + b"x" * 200_000 + b",0\n", "line 2: not valid CSV"),
    ],
)
def test_bad_csv_is_named(write, content, message):
    path = write("a.csv", content)
    with pytest.raises(DataError, match=message):
        list(read_rows(path))


def test_single_column_csv(write):
    assert list(read_rows(write("a.csv", "text\none\n\ntwo\n"))) == [
        (2, {"text": "one"}),
        (4, {"text": "two"}),
    ]


def test_parquet(tmp_path, write):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"text": f"t{i}", "label": i % 3, "choices": ["a", "b"]} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == list(enumerate(rows, start=1))
    with pytest.raises(DataError, match=r"b.parquet: not a readable Parquet file"):
        list(read_rows(write("b.parquet", b"PAR1 but not really")))
    doubled = pa.table([pa.array([1]), pa.array([2])], names=["text", "text"])
    pq.write_table(doubled, tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c.parquet: two columns are called 'text'"):
        list(read_rows(tmp_path / "c.parquet"))


def test_parquet_without_pyarrow_names_the_extra(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write("a.parquet", b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'bayestune\[data\]'"):
        list(read_rows(path))


def test_tolerant_reading_goes_on_after_bad_lines():
    content = b'\xef\xbb\xbf{"a": 1}\n\n\xff\n[2]\n{"a": 3}\r\n{"a"'
    seen = list(read_lines_tolerant(io.BytesIO(content)))
    assert [number for number, _ in seen] == [1, 3, 4, 5, 6]
    assert [item for _, item in seen if isinstance(item, dict)] == [{"a": 1}, {"a": 3}]
    errors = [str(item) for _, item in seen if isinstance(item, DataError)]
    assert [error.split(":")[0] for error in errors] == [f"stdin line {n}" for n in (3, 4, 6)]


def test_tolerant_reading_of_text_streams():
    assert [n for n, _ in read_lines_tolerant(io.StringIO('{"a": 1}\n{"a": 2}'), "x")] == [1, 2]
    assert list(read_lines_tolerant(io.StringIO('\ufeff{"a": 1}'))) == [(1, {"a": 1})]
    wrapped = io.TextIOWrapper(io.BytesIO(b'\xff\n{"a": 2}'), encoding="utf-8")
    (_, error), (_, row) = read_lines_tolerant(wrapped, "x")
    assert "x line 1: not UTF-8" in str(error)
    assert row == {"a": 2}


def test_tolerant_reading_is_lazy():
    def endless():
        while True:
            yield b'{"a": 1}\n'

    stream = read_lines_tolerant(endless())  # pyright: ignore[reportArgumentType]
    assert next(stream) == (1, {"a": 1})


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_row_or_a_data_error(line):
    try:
        row = parse_line(line, "x line 1", first=True)
    except DataError as error:
        assert str(error).startswith("x line 1: ")
    else:
        assert row is None or isinstance(row, dict)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans()))
def test_every_json_object_is_read_back(row):
    assert parse_line(json.dumps(row).encode(), "x") == row
