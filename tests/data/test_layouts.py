"""The Hub's layouts of the common-sense tasks, from local files with the same columns and types."""

from __future__ import annotations

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from bayestune.data import Task, hub, read_lines_tolerant
from bayestune.errors import DataError

TEXT = Value("string")
CHOICES = Sequence({"text": TEXT, "label": TEXT})
FEATURES = {
    "arc": Features({"id": TEXT, "question": TEXT, "choices": CHOICES, "answerKey": TEXT}),
    "openbookqa": Features(
        {"id": TEXT, "question_stem": TEXT, "choices": CHOICES, "answerKey": TEXT}
    ),
    "winogrande": Features(dict.fromkeys(("sentence", "option1", "option2", "answer"), TEXT)),
    "boolq": Features({"question": TEXT, "answer": Value("bool"), "passage": TEXT}),
    "mmlu": Features(
        {
            "question": TEXT,
            "subject": TEXT,
            "choices": Sequence(TEXT),
            "answer": ClassLabel(names=["A", "B", "C", "D"]),
        }
    ),
}
ROWS = {
    "arc": [
        {
            "id": "a",
            "question": "How many?",
            "choices": {"text": ["2", "3", "1", "4"], "label": ["1", "2", "3", "4"]},
            "answerKey": "2",
        },
        {
            "id": "b",
            "question": "Which?",
            "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
            "answerKey": "C",
        },
    ],
    "openbookqa": [
        {
            "id": "7-980",
            "question_stem": "The sun is",
            "choices": {"text": ["wet", "hot"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        {
            "id": "7-981",
            "question_stem": "Ice is",
            "choices": {"text": ["cold", "hot"], "label": ["A", "B"]},
            "answerKey": "A",
        },
    ],
    "winogrande": [
        {"sentence": "Ann beat Bea as _ was fast.", "option1": "Ann", "option2": "Bea", "answer": a}
        for a in "12"
    ],
    "boolq": [
        {"question": "is it so", "answer": answer, "passage": "It is."} for answer in (True, False)
    ],
    "mmlu": [
        {"question": "1 + 1 =", "subject": "maths", "choices": ["1", "2", "3", "4"], "answer": 1},
        {"question": "1 - 1 =", "subject": "maths", "choices": ["1", "2", "3", "0"], "answer": 3},
    ],
}
#: Question, choices and classes that each of them must give.
EXPECTED = {
    "arc": ("How many?", ("2", "3", "1", "4"), [1, 2]),
    "openbookqa": ("The sun is", ("wet", "hot"), [1, 0]),
    "winogrande": ("Ann beat Bea as _ was fast.", ("Ann", "Bea"), [0, 1]),
    "boolq": ("is it so", ("no", "yes"), [1, 0]),
    "mmlu": ("1 + 1 =", ("1", "2", "3", "4"), [1, 3]),
}
NAMES = pytest.mark.parametrize("name", list(FEATURES))


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Load a data set as the Hub gives it: a Parquet file with its features, read by datasets."""

    def loader(name: str, rows: list | None = None, **options) -> Task:
        path = tmp_path / f"{name}.parquet"
        Dataset.from_list(rows or ROWS[name], features=FEATURES[name]).to_parquet(path)
        cache = str(tmp_path / "cache")

        def split(source):
            files = {source.split: str(path)}
            return datasets.load_dataset(
                "parquet", data_files=files, split=source.split, cache_dir=cache
            )

        monkeypatch.setattr(hub, "load_split", split)
        return Task.load(f"hf:org/{name}:train", **options)

    return loader


@NAMES
def test_hub_layouts_are_read_as_they_are(load, name) -> None:
    task = load(name)
    question, choices, targets = EXPECTED[name]
    assert task.kind == "choice"
    assert (task[0].question, task[0].choices, task.targets) == (question, choices, targets)
    assert task[0].passage == ("It is." if name == "boolq" else None)
    assert task[0].id == (ROWS[name][0].get("id") or 1)


@NAMES
def test_json_lines_with_the_same_columns_are_too(write, name) -> None:
    task = Task.load(write("rows.jsonl", ROWS[name]))
    assert (task[0].choices, task.targets) == EXPECTED[name][1:]


@NAMES
def test_rows_of_any_layout_follow_a_task_of_another(load, name) -> None:
    other = Task.from_rows(
        [{"question": "?", "choices": list("abcde"), "answer": i} for i in (0, 1)]
    )
    task = load(name, like=other)
    assert (task[0].question, task.targets) == (EXPECTED[name][0], EXPECTED[name][2])
    assert other.parse(ROWS[name][0]).choices == EXPECTED[name][1]
    outside = load(name, kind="choice", answer=None, require_labels=False)
    assert outside.targets == [-1, -1]


def test_hidden_answers_are_unlabelled(load) -> None:
    rows = [{**ROWS["winogrande"][0], "answer": ""}]
    with pytest.raises(DataError, match="'answer' is empty"):
        load("winogrande", rows)
    assert load("winogrande", rows, require_labels=False).targets == [-1]


def test_rows_without_an_answer_can_be_predicted(write) -> None:
    like = Task.from_rows(ROWS["winogrande"])
    stream = write(
        "rows.jsonl", [{k: v for k, v in ROWS["winogrande"][0].items() if k != "answer"}]
    )
    with stream.open("rb") as lines:
        ((_, row),) = read_lines_tolerant(lines)
    assert like.parse(row).choices == ("Ann", "Bea")


def test_csv_booleans(write) -> None:
    text = "question,passage,answer\nis it,It is.,True\nis it,It is.,False\n"
    assert Task.load(write("rows.csv", text)).targets == [1, 0]


def test_columns_that_are_there_or_named_win() -> None:
    row = {"sentence": "s _", "option1": "a", "option2": "b", "answer": "1"}
    rows = [{**row, "text": "x", "label": i} for i in (0, 1)]
    assert Task.from_rows(rows).kind == "classification"
    rows = [row, {**row, "answer": "2"}]
    assert Task.from_rows(rows, text="sentence", label="answer").kind == "classification"
    rows = [{**ROWS["arc"][1], "answer": i} for i in (0, 1)]
    assert Task.from_rows(rows).targets == [0, 1]
    with pytest.raises(DataError, match="no 'text'"):
        Task.from_rows([{"question": "who", "passage": "p", "answer": "someone"}] * 2)
