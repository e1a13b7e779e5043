from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayestune.data import Example, Fields, LabelSet, Task, load_task
from bayestune.data.split import held_out
from bayestune.errors import ConfigError, DataError

ROWS = [
    {"id": "x", "text": "bad", "label": 0},
    {"text": "good", "label": 1},
    {"text": "fine", "label": 1},
]
CHOICE = [
    {"id": 7, "question": "q0", "choices": ["no", "yes"], "answer": 1},
    {"question": "q1", "choices": ["w", "x", "y"], "answer": "A", "passage": "p"},
    {"question": "q2", "choices": ["w", "x", "y"], "answer": "y"},
]


def texts(*labels, **extra):
    return [{"text": f"t{i}", "label": label, **extra} for i, label in enumerate(labels)]


# -- what is read ---------------------------------------------------------------------------------


def test_classification_from_jsonl(write):
    path = write("train.jsonl", ROWS)
    task = Task.load(path)
    assert task.kind == "classification"
    assert task.examples[0] == Example("x", text="bad", label=0)
    assert task.examples[2] == Example(3, text="fine", label=1)
    assert task.labels == LabelSet((0, 1), ("0", "1"))
    assert task.targets == [0, 1, 1]
    assert task.class_counts == (1, 2)
    assert task.choice_counts is None
    assert task.source == str(path)
    assert len(task) == 3
    assert [e.id for e in task] == ["x", 2, 3]
    assert load_task(path) == Task.from_jsonl(path) == task


def test_choice_letters_indices_and_texts():
    task = Task.from_rows(CHOICE)
    assert task.kind == "choice"
    assert list(task.labels) == ["A", "B", "C"]
    assert task.targets == [1, 0, 2]
    assert task.choice_counts == (2, 3, 3)
    assert task[1] == Example(2, question="q1", choices=("w", "x", "y"), passage="p", label=0)


def test_all_formats_agree(write, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"text": "a, b", "label": 10}, {"text": "c", "label": 9}, {"text": "d", "label": 10}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    csv = write("t.csv", 'text,label\n"a, b",10\nc,9.0\nd,10\n')
    tasks = [
        Task.from_rows(rows),
        Task.load(write("t.jsonl", rows)),
        Task.load(csv),
        Task.from_csv(csv),
        Task.load(tmp_path / "t.parquet"),
        Task.from_parquet(tmp_path / "t.parquet"),
    ]
    assert {task.hash for task in tasks} == {tasks[0].hash}
    assert tasks[2].labels == LabelSet((9, 10), ("9", "10"))


def test_integral_floats_of_parquet_are_integers(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": [1.0, 0.0]}), tmp_path / "t.parquet")
    assert Task.load(tmp_path / "t.parquet").labels.values == (0, 1)
    pq.write_table(
        pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}), tmp_path / "n.parquet"
    )
    with pytest.raises(DataError, match=r"n.parquet row 2: 'label' is nan"):
        Task.load(tmp_path / "n.parquet")


def test_csv_choices_are_json_lists(write):
    path = write("c.csv", 'question,choices,answer\nq,"[""a"", ""b""]",1\nr,"[""c"", ""d""]",A\n')
    task = Task.load(path)
    assert task.targets == [1, 0]
    assert task[1].choices == ("c", "d")
    bad = write("d.csv", "question,choices,answer\nq,a|b,1\n")
    with pytest.raises(DataError, match=r"d.csv line 2: 'choices' must be a JSON list"):
        Task.load(bad)


def test_choices_with_markers_of_their_own():
    rows = [
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"},
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    ]
    assert Task.from_rows(rows, answer="answerKey").targets == [0, 1]


def test_a_second_text_is_read_where_there_is_one():
    rows = [
        {"text": "a", "text2": "b", "body": "x", "label": 0},
        {"text": "c", "text2": "d", "body": "y", "label": 1},
    ]
    assert Task.from_rows(rows)[0].text2 == "b"
    assert Task.from_rows(rows, text2="body")[0].text2 == "x"
    # Unless it is switched off or another text is named.
    assert Task.from_rows(rows, text2=None)[0].text2 is None
    assert Task.from_rows(rows, text="body")[0].text2 is None
    single = Task.from_rows([{**row, "text2": None} for row in rows])
    assert single.fields.text2 is None and single[0].text2 is None
    assert Task.from_rows(rows, like=single)[0].text2 is None


def test_naming_a_text_makes_questions_a_classification():
    rows = [{**row, "stars": i % 2} for i, row in enumerate(CHOICE)]
    task = Task.from_rows(rows, text="question", label="stars")
    assert task.kind == "classification"
    assert task[0].text == "q0"


def test_limit_reads_the_first_rows(write):
    path = write("t.jsonl", texts(0, 1, 0, 1))
    assert [e.id for e in Task.load(path, limit=3)] == [1, 2, 3]
    assert Task.load(path).limit(2).targets == [0, 1]
    with pytest.raises(ConfigError, match="limit is 0"):
        Task.load(path, limit=0)
    with pytest.raises(ConfigError, match="limit is 0"):
        Task.load(path).limit(0)
    with pytest.raises(ConfigError, match="limit is 0"):
        Task.from_rows(ROWS, limit=0)


# -- classes --------------------------------------------------------------------------------------


def test_integers_sort_by_size_and_strings_by_code_point():
    assert Task.from_rows(texts(10, 9, 2)).labels.values == (2, 9, 10)
    assert Task.from_rows(texts("b", "B", "a")).labels.values == ("B", "a", "b")
    assert Task.from_rows(texts(True, False)).labels.values == ("false", "true")


def test_mixed_labels_name_both_rows(write):
    path = write("t.jsonl", texts(0, "a", 1))
    with pytest.raises(DataError, match=r"t.jsonl line 1 has 0, .*t.jsonl line 2 has 'a'"):
        Task.load(path)


def test_label_names_of_the_rows():
    rows = [{"text": "a", "label": 1, "label_name": "pos"}, {"text": "b", "label": 0}]
    assert Task.from_rows(rows).labels == LabelSet((0, 1), ("0", "pos"))
    rows = [{"text": "a", "y": "p", "y_name": "pos"}, {"text": "b", "y": "n", "y_name": "neg"}]
    assert Task.from_rows(rows, label="y").labels == LabelSet(("n", "p"), ("neg", "pos"))


def test_contradicting_label_names():
    rows = [
        {"text": "a", "label": 1, "label_name": "pos"},
        {"text": "b", "label": 0, "label_name": "neg"},
        {"text": "c", "label": 1, "label_name": "neg"},
    ]
    with pytest.raises(DataError, match="row 3: label 1 is called 'neg' here but 'pos' at row 1"):
        Task.from_rows(rows)
    rows[2] = {"text": "c", "label": 2, "label_name": "neg"}
    with pytest.raises(DataError, match="row 3: the name 'neg' stands for label 2 here"):
        Task.from_rows(rows)


def test_labels_json_gives_the_order(write):
    write("d/labels.json", json.dumps(["zebra", "ant", "unused"]))
    ints = Task.load(write("d/i.jsonl", texts(1, 0)))
    strings = Task.load(write("d/s.jsonl", texts("ant", "zebra")))
    cells = Task.load(write("d/c.csv", "text,label\nt0,ant\nt1,zebra\n"))
    assert ints.labels == strings.labels == cells.labels
    assert list(ints.labels) == ["zebra", "ant", "unused"]
    assert ints.targets == strings.targets == cells.targets == [1, 0]
    assert ints.class_counts == (1, 1, 0)


def test_labels_json_is_checked_against_the_rows(write):
    write("d/labels.json", json.dumps(["zebra", "ant"]))
    with pytest.raises(DataError, match=r"i.jsonl line 2: Unknown label 2"):
        Task.load(write("d/i.jsonl", texts(0, 2)))
    with pytest.raises(DataError, match=r"s.jsonl line 1: Unknown label 'aunt'. Did .* 'ant'\?"):
        Task.load(write("d/s.jsonl", texts("aunt", "zebra")))
    rows = [{"text": "a", "label": 0, "label_name": "zebra"}]
    rows.append({"text": "b", "label": 1, "label_name": "bee"})
    with pytest.raises(
        DataError, match="line 2: label 1 is called 'bee' here, but class 1 is 'ant'"
    ):
        Task.load(write("d/n.jsonl", rows))
    write("d/labels.json", "{}")
    with pytest.raises(DataError, match=r"labels.json: expected a JSON list"):
        Task.load(write("d/i.jsonl", texts(0, 1)))


def test_labels_json_of_numbers(write):
    """The names 1, 2, 3 look like indices; strings are names and integers are indices."""
    write("d/labels.json", json.dumps(["1", "2", "3"]))
    assert Task.load(write("d/s.jsonl", texts("1", "3"))).targets == [0, 2]
    assert Task.load(write("d/i.jsonl", texts(1, 0))).targets == [1, 0]
    assert Task.load(write("d/names.csv", "text,label\na,1\nb,3\n")).targets == [0, 2]
    assert Task.load(write("d/index.csv", "text,label\na,1\nb,0\n")).targets == [1, 0]


def test_labels_option(write):
    names = write("names.json", json.dumps(["n", "p"]))
    for labels in (["n", "p"], ("n", "p"), names, str(names), LabelSet((0, 1), ("n", "p"))):
        task = Task.from_rows(ROWS, labels=labels)
        assert list(task.labels) == ["n", "p"]
        assert task.targets == [0, 1, 1]
    named = [{**row, "label_name": "other"} for row in ROWS]
    assert list(Task.from_rows(named, labels=["n", "p"]).labels) == ["n", "p"]
    with pytest.raises(DataError, match="row 2: Unknown label 1"):
        Task.from_rows(ROWS, labels=LabelSet((0, 5), ("n", "p")))
    with pytest.raises(ConfigError, match="either labels or like"):
        Task.from_rows(ROWS, labels=["n", "p"], like=Task.from_rows(ROWS))


def test_leading_zeros_in_csv_are_names(write):
    path = write("t.csv", "text,label\na,01\nb,2\n")
    assert Task.load(path).labels.values == ("01", "2")


def test_one_class_cannot_be_trained():
    with pytest.raises(DataError, match="every label is '1'; training needs at least two"):
        Task.from_rows(texts(1, 1))
    with pytest.raises(DataError, match="every label is 'b'"):
        Task.from_rows(texts(1, 1), labels=["a", "b"])
    assert Task.from_rows(texts(1, 1), like=Task.from_rows(ROWS)).targets == [1, 1]
    assert Task.from_rows(texts(1, 1), require_labels=False).targets == [0, 0]


# -- like -----------------------------------------------------------------------------------------


def test_like_brings_kind_classes_and_columns():
    rows = [{"a": "x", "b": "u", "y": "n"}, {"a": "z", "b": "v", "y": "p"}]
    train = Task.from_rows(rows, text="a", text2="b", label="y")
    test = Task.from_rows(rows[1:], like=train)
    assert test.labels == train.labels
    assert test.fields == Fields(text="a", text2="b", label="y")
    assert test.targets == [1]
    other = Task.from_rows([{"c": "x", "b": "u", "y": "n"}], like=train, text="c")
    assert other[0].text == "x"


def test_like_names_the_unknown_label(write):
    train = Task.from_rows(texts("sports", "politics"))
    path = write("test.jsonl", texts("politics", "sport"))
    with pytest.raises(
        DataError, match=r"test.jsonl line 2: Unknown label 'sport'. Did you mean 'sports'\?"
    ):
        Task.load(path, like=train)


def test_like_reads_csv_numbers_as_the_training_set_did(write):
    csv = write("t.csv", "text,label\na,1\nb,0\n")
    assert Task.load(csv, like=Task.from_rows(texts(0, 1))).targets == [1, 0]
    assert Task.load(csv, like=Task.from_rows(texts("0", "1"))).targets == [1, 0]
    named = Task.from_rows(ROWS, labels=["n", "p"])
    assert Task.load(csv, like=named).targets == [1, 0]
    assert Task.load(write("n.csv", "text,label\na,p\nb,n\n"), like=named).targets == [1, 0]


def test_like_refuses_other_label_names():
    train = Task.from_rows(texts(0, 1), labels=["negative", "positive"])
    rows = texts(0, 1, label_name="NUM")
    with pytest.raises(DataError, match="row 1: label 0 is called 'NUM' here, but class 0 is"):
        Task.from_rows(rows, like=train)
    assert Task.from_rows(rows, like=train, require_labels=False).targets == [-1, -1]
    unnamed = Task.from_rows(texts(0, 1))
    assert Task.from_rows(rows, like=unnamed).targets == [0, 1]


def test_like_of_choices():
    train = Task.from_rows(CHOICE[:2])
    assert list(Task.from_rows(CHOICE[:1], like=train).labels) == ["A", "B", "C"]
    four = {"question": "q", "choices": list("wxyz"), "answer": 3}
    with pytest.raises(DataError, match=r"row 1: 4 choices, but .* at most 3 "):
        Task.from_rows([four], like=train)
    with pytest.raises(DataError, match="row 1: no 'question'"):
        Task.from_rows(ROWS, like=train)


# -- labels that are not there --------------------------------------------------------------------


def test_labels_are_required_unless_said():
    rows = [*texts(0, 1), {"text": "none"}, {"text": "null", "label": None}, *texts(-1, -1.0, "")]
    task = Task.from_rows(rows, require_labels=False)
    assert task.targets == [0, 1, -1, -1, -1, -1, -1]
    assert task.class_counts == (1, 1)
    for i, row in enumerate(rows[2:]):
        with pytest.raises(DataError, match="row 3: "):
            Task.from_rows([*rows[:2], row])
        assert Task.from_rows([row], like=task, require_labels=False).targets == [-1], i


def test_out_of_scope_rows_against_another_label_set():
    train = Task.from_rows(texts("a", "b"))
    ood = Task.from_rows(texts("c", "a", 4), like=train, require_labels=False)
    assert ood.targets == [-1, 0, -1]


def test_label_none_ignores_the_column():
    task = Task.from_rows(texts(0, [1]), label=None, require_labels=False)
    assert task.targets == [-1, -1]
    assert len(task.labels) == 0
    choice = Task.from_rows(CHOICE, answer=None, require_labels=False)
    assert choice.targets == [-1, -1, -1]
    with pytest.raises(ConfigError, match="both ignored and required"):
        Task.from_rows(ROWS, label=None)


def test_unlabelled_csv_column(write):
    path = write("t.csv", "text,label\na,-1\nb,\nc,1\n")
    train = Task.from_rows(texts(0, 1))
    assert Task.load(path, like=train, require_labels=False).targets == [-1, -1, 1]
    with pytest.raises(DataError, match=r"t.csv line 2: label -1 marks"):
        Task.load(path)


def test_unanswered_questions():
    rows = [{**CHOICE[0], "answer": answer} for answer in (None, "", -1)]
    rows.append({key: value for key, value in CHOICE[0].items() if key != "answer"})
    assert Task.from_rows(rows, require_labels=False).targets == [-1] * 4
    for row in rows:
        with pytest.raises(DataError, match=r"row 1: .*'answer'"):
            Task.from_rows([row])


# -- bad rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "a", "label": 0}, r"no 'text'. Did you mean 'txt'\?"),
        ({"text": "a", "lable": 0}, r"no 'label'. Did you mean 'lable'\?"),
        ({"text": 3, "label": 0}, "'text' is 3; expected a string"),
        ({"text": None, "label": 0}, "'text' is null; expected a string"),
        ({"text": ["a"], "label": 0}, "'text' is \\['a'\\]; expected a string"),
        ({"text": " \n", "label": 0}, "'text' is empty"),
        ({"text": "a\ud800", "label": 0}, "'text' holds half a surrogate pair at position 2"),
        ({"text": "a", "label": None}, "'label' is null"),
        ({"text": "a", "label": ""}, "'label' is empty"),
        ({"text": "a", "label": 0.5}, "'label' is 0.5"),
        ({"text": "a", "label": float("nan")}, "'label' is nan"),
        ({"text": "a", "label": [0]}, "'label' is a list"),
        ({"text": "a", "label": {"x": 0}}, "'label' is a dict"),
        ({"text": "a", "label": -1}, "label -1 marks an unlabelled"),
        ({"id": [1], "text": "a", "label": 0}, "'id' is \\[1\\]"),
        ({"id": True, "text": "a", "label": 0}, "'id' is True"),
        ({}, "no 'text'"),
    ],
)
def test_bad_row_is_named(write, row, message):
    path = write("train.jsonl", [*ROWS, row])
    with pytest.raises(DataError, match=message) as error:
        Task.load(path)
    assert str(error.value).startswith(f"{path} line 4: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "'question' is empty"),
        ({"question": 1}, "'question' is 1"),
        ({"passage": 1}, "'passage' is 1"),
        ({"choices": "no"}, "'choices' is 'no'; expected a list"),
        ({"choices": ["no"]}, "has 1 choices; expected 2 to 26"),
        ({"choices": ["x"] * 27}, "has 27 choices"),
        ({"choices": ["no", 1]}, "'choices' entry 1 is 1"),
        ({"choices": ["no", ""]}, "'choices' entry 1 is empty"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "2 texts but not as many labels"),
        ({"answer": 2}, "'answer' is 2; expected an index from 0 to 1, a letter from A to B"),
        ({"answer": -1}, "'answer' is -1"),
        ({"answer": "C"}, "'answer' is 'C'"),
        ({"answer": "1"}, "'answer' is '1'"),
        ({"answer": "AB"}, "'answer' is 'AB'"),
        ({"answer": True}, "'answer' is true"),
        ({"answer": 0.5}, "'answer' is 0.5"),
        ({"answer": "x", "choices": ["x", "x"]}, r"'x' could mean any of the choices \[0, 1\]"),
        ({"answer": "A", "choices": ["B", "A"]}, r"'A' could mean any of the choices \[0, 1\]"),
    ],
)
def test_bad_choice_row_is_named(change, message):
    with pytest.raises(DataError, match=message) as error:
        Task.from_rows([CHOICE[1], {**CHOICE[0], **change}])
    assert str(error.value).startswith("row 2: ")


def test_empty_texts_can_be_predicted():
    train = Task.from_rows(ROWS)
    task = Task.from_rows([{"text": ""}], like=train, require_labels=False)
    assert task[0].text == ""
    with pytest.raises(DataError, match="row 1: 'text' is 3"):
        Task.from_rows([{"text": 3}], like=train, require_labels=False)


def test_choices_take_no_labels():
    with pytest.raises(ConfigError, match="classes are the letters"):
        Task.from_rows(CHOICE, labels=["no", "yes"])


def test_unknown_option_and_no_rows():
    with pytest.raises(ConfigError, match=r"Unknown option 'txt'. Did you mean 'text'\?"):
        Task.from_rows(ROWS, txt="x")  # pyright: ignore[reportCallIssue]
    with pytest.raises(DataError, match="no rows"):
        Task.from_rows([])


# -- texts, single rows, schema -------------------------------------------------------------------


def test_from_texts():
    train = Task.from_rows(ROWS)
    task = Task.from_texts(["a", ""], like=train)
    assert task.examples == (Example(1, text="a"), Example(2, text=""))
    assert task.labels == train.labels
    assert Task.from_texts("one text").examples == (Example(1, text="one text"),)
    assert len(Task.from_texts(["a"]).labels) == 0
    assert Task.from_texts([("a", "b")])[0] == Example(1, text="a", text2="b")
    assert Task.from_texts([]).examples == ()


def test_from_texts_is_checked():
    train = Task.from_rows(ROWS)
    pairs = Task.from_rows([{**r, "b": "x"} for r in ROWS], text2="b")
    assert Task.from_texts([("a", "c")], like=pairs)[0].text2 == "c"
    with pytest.raises(DataError, match="text 2: got 1 texts; expected a pair"):
        Task.from_texts([("a", "b"), "c"], like=pairs)
    with pytest.raises(DataError, match="text 1: got 2 texts; expected one"):
        Task.from_texts([("a", "b")], like=train)
    with pytest.raises(DataError, match="text 2: 'text' is 5"):
        Task.from_texts(["a", 5], like=train)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="give rows with 'question' and 'choices'"):
        Task.from_texts(["a"], like=Task.from_rows(CHOICE))


def test_parse_one_more_row():
    train = Task.from_rows(texts("a", "b"))
    assert train.parse({"text": "x"}, 4) == Example(4, text="x")
    assert train.parse({"id": "i", "text": "x", "label": "b"}).label == 1
    assert train.parse({"text": "x", "label": "zzz"}).label == -1
    with pytest.raises(DataError, match="stdin line 4: no 'text'"):
        train.parse({}, 4, "stdin line 4")
    with pytest.raises(DataError, match="row 9: 4 choices"):
        Task.from_rows(CHOICE).parse({"question": "q", "choices": list("abcd")}, 9)


@pytest.mark.parametrize("rows", [ROWS, CHOICE, texts("b", "a")])
def test_schema_round_trip(rows):
    task = Task.from_rows(rows)
    schema = json.loads(json.dumps(task.schema()))
    empty = Task.from_schema(schema)
    assert len(empty) == 0
    again = Task.from_rows(rows, like=empty)
    assert (again.hash, again.fields, again.kind) == (task.hash, task.fields, task.kind)


@pytest.mark.parametrize(
    "change", [{"kind": "clasification"}, {"labels": 3}, {"fields": {"txt": "a"}}, {"fields": 1}]
)
def test_bad_schema(change):
    schema = Task.from_rows(ROWS).schema()
    with pytest.raises(DataError):
        Task.from_schema({**schema, **change})
    for key in change:
        with pytest.raises(DataError, match=f"no {key!r}"):
            Task.from_schema({k: v for k, v in schema.items() if k != key})


# -- hash, select, split --------------------------------------------------------------------------


def test_hash_is_of_the_content_only(write):
    task = Task.from_rows(ROWS)
    assert task.hash == Task.load(write("t.jsonl", ROWS)).hash
    assert task.hash == Task.from_rows([{**row, "id": "other"} for row in ROWS]).hash
    different = [
        Task.from_rows(ROWS[::-1]),
        Task.from_rows(ROWS, labels=["n", "p"]),
        Task.from_rows([{**ROWS[0], "text": "bad!"}, *ROWS[1:]]),
        Task.from_rows([*ROWS[:2], {**ROWS[2], "label": 0}]),
        Task.from_rows([{**row, "text2": "x"} for row in ROWS], text2="text2"),
        task.select([0, 1]),
    ]
    assert len({task.hash, *(t.hash for t in different)}) == 1 + len(different)
    joined = Task.from_rows([{"text": "a", "b": "bc"}], text2="b", require_labels=False)
    shifted = Task.from_rows([{"text": "ab", "b": "c"}], text2="b", require_labels=False)
    assert joined.hash != shifted.hash


def test_select():
    task = Task.from_rows(ROWS)
    assert [e.id for e in task.select([2, 0])] == [3, "x"]
    for bad in (3, -1):
        with pytest.raises(ConfigError, match="outside the task's 3"):
            task.select([bad])


def test_split_is_a_stratified_partition():
    task = Task.from_rows(texts(*[i % 4 if i % 2 else 0 for i in range(400)]))
    rest, out = task.split(0.1, seed=3)
    assert sorted(e.id for e in [*rest, *out]) == list(range(1, 401))
    assert task.class_counts == (200, 100, 100)
    assert out.class_counts == (20, 10, 10)
    for part in (rest, out):
        assert all(a.id < b.id for a, b in pairwise(part))
        assert part.labels == task.labels
    assert task.split(0.1, seed=3)[1] == out
    assert task.split(0.1, seed=4)[1] != out


def test_split_shares_what_small_classes_leave_over():
    """150 classes of 5 at 10 %: 75 rows from 75 different classes, not the first 75 of them."""
    targets = [k for k in range(150) for _ in range(5)]
    out = held_out(targets, 0.1, seed=0)
    classes = Counter(targets[i] for i in out)
    assert len(out) == 75
    assert set(classes.values()) == {1}
    assert classes.keys() != set(range(75))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-1, 6), min_size=2, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 10**6),
)
def test_split_properties(targets, fraction, seed):
    counts = Counter(targets)
    most = sum(n - 1 for n in counts.values())
    if most == 0:
        with pytest.raises(DataError, match="Nothing can be held out"):
            held_out(targets, fraction, seed)
        return
    out = held_out(targets, fraction, seed)
    assert len(out) == min(most, max(1, round(fraction * len(targets))))
    taken = Counter(targets[i] for i in out)
    for k, n in counts.items():
        assert taken[k] <= n - 1
        if len(out) < most:  # no class is drained while another has rows to give
            assert taken[k] >= min(n - 1, int(fraction * n))
    assert out == held_out(targets, fraction, seed)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_fraction_is_checked(fraction):
    with pytest.raises(ConfigError, match="fraction is"):
        Task.from_rows(ROWS).split(fraction)


def test_large_file_is_read_in_order(write):
    rng = random.Random(0)
    rows = [{"text": f"t{i}", "label": rng.randrange(5)} for i in range(3000)]
    task = Task.load(write("t.jsonl", rows))
    assert task.targets == [row["label"] for row in rows]
    assert [e.text for e in task] == [row["text"] for row in rows]
