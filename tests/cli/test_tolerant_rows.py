"""Reading on past bad records: what the strict readers take is taken, what they refuse is named."""

from __future__ import annotations

import pytest

from bayestune.data import Task, open_tolerant, read_rows
from bayestune.errors import DataError


def read(path) -> tuple[list, dict[int, str]]:
    """Return the good rows with their numbers, and the errors by number."""
    found = list(open_tolerant(path).rows)
    good = [(number, row) for number, row in found if not isinstance(row, DataError)]
    return good, {number: str(row) for number, row in found if isinstance(row, DataError)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'text,label\n"a, b",1\n\n"two\nlines",2\n'),
        ("b.csv", b"\xef\xbb\xbftext\r\none\r\n\r\ntwo\r\n"),
        ("c.jsonl", b'{"text": "a"}\n\n{"text": "b"}'),
    ],
)
def test_good_files_read_as_by_the_strict_reader(tmp_path, name, content) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert read(path) == (list(read_rows(path)), {})


def test_a_bad_line_within_a_quoted_cell_takes_its_record_along(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\n"one\n\xff\nthree",1\ngood,2\n')
    good, bad = read(path)
    assert good == [(5, {"text": "good", "label": "2"})]
    assert list(bad) == [2]
    assert bad[2].startswith(f"{path} line 3: not UTF-8")
    with pytest.raises(DataError, match="line 3: not UTF-8"):
        list(read_rows(path))


def test_single_columns_keep_their_bad_lines_apart_from_blank_ones(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\none\n\xff\n\ntwo\n")
    good, bad = read(path)
    assert good == [(2, {"text": "one"}), (5, {"text": "two"})]
    assert list(bad) == [3]


@pytest.mark.parametrize("header", [b"text,,x\n", b"text,text\n", b"\xff\n", b"\xff\xfea\x00"])
def test_a_bad_header_ends_it(tmp_path, header) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(header + b"a,b,c\n")
    with pytest.raises(DataError, match="line 1"):
        read(path)


def test_any_name_is_json_lines(tmp_path) -> None:
    path = tmp_path / "pipe"
    path.write_bytes(b'{"text": "a"}\nx\n')
    good, bad = read(path)
    assert good == [(1, {"text": "a"})]
    assert list(bad) == [2]
    with pytest.raises(DataError, match="no such file"):
        open_tolerant(tmp_path / "nothing")
    with pytest.raises(DataError, match="is a directory"):
        open_tolerant(tmp_path)


def test_cells_of_text_hold_lists_as_json() -> None:
    row = {"question": "q", "choices": ["a", "b"], "answer": "A"}
    task = Task.from_rows([row, {**row, "answer": "B"}])
    cells = {"question": "q", "choices": '["a", "b"]'}
    assert task.parse(cells, untyped=True).choices == ("a", "b")
    with pytest.raises(DataError, match="expected a list"):
        task.parse(cells)
