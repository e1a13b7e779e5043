"""Page, Markdown and LaTeX: the same numbers, whatever the names, and the same bytes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from made_benchmark import ROWS, made_suite, make

from bayestune.bench import Plan, write_plan
from bayestune.bench.table import markdown
from bayestune.errors import ConfigError
from bayestune.report import FORMS, write_report
from bayestune.report.gather import gather
from bayestune.report.html import to_html
from bayestune.report.latex import escape, to_latex
from bayestune.report.markdown import to_markdown_report


class Tables(HTMLParser):
    """The texts of a page's tables, row by row, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.bold: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data
        if "b" in self._open:
            self.bold.append(data)


def numbers(text: str) -> list[str]:
    return re.findall(r"[-+]?\d+\.\d{3}", text)


def test_markdown_has_the_table_of_the_benchmark(folder, report) -> None:
    text = to_markdown_report(report)
    plan = Plan.of(made_suite(), folder, *map(list, (made_suite().tasks, ROWS)), 3)
    for table in markdown(plan).split("\n\n###"):
        assert table.strip("# \n") in text


def test_the_page_has_the_numbers_of_the_table(report) -> None:
    found = Tables(to_html(report))
    task = report.tasks[0]
    rows = [row for row in found.rows if row and row[0].strip().startswith("polar_vbll")]
    shown = numbers(" ".join(rows[0]))
    entry = next(m.entry for m in task.methods if m.name == "polar_vbll")
    for value in entry.values.values():
        assert f"{value.mean:.3f}" in shown
        assert f"{value.error:.3f}" in shown
    for end in (entry.gap.mean, entry.gap.low, entry.gap.high):
        assert f"{end:+.3f}" in shown
    best = [m.entry for task in report.tasks for m in task.methods if m.entry.best]
    assert found.bold == [f"{entry.values['NLL'].mean:.3f}" for entry in best]


def test_latex_has_the_numbers_of_the_table(report) -> None:
    text = to_latex(report)
    for method in report.tasks[2].methods:
        for value in method.entry.values.values():
            assert f"{value.mean:.3f}" in text
    # One of the methods and one of rows from elsewhere each, and one of labelled ones.
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2 * len(report.tasks) + 1
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = re.match(r"\{(l r*)\}", table.replace("{lr", "{l r"))[1].replace(" ", "")
        rows = table.split(r"\end{tabular}")[0].split("\\\\")[:-1]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}


@pytest.mark.parametrize("form", FORMS)
def test_labelled_rows_from_elsewhere_have_a_table_of_their_own(report, form) -> None:
    text = FORMS[form](report).replace("\\", "")
    (task,) = (task for task in report.tasks if task.methods[0].entry.shifted)
    assert task.name == "questions" and next(iter(task.methods[0].entry.shifted)) == "exams, acc"
    assert re.search("abelled rows from elsewhere", text) and "exams, AUROC MI" in text
    for method in task.methods:
        for value in method.entry.shifted.values():
            assert f"{value.mean:.3f}" in text


@pytest.mark.parametrize("form", FORMS)
def test_a_report_says_what_is_missing(report, form) -> None:
    text = FORMS[form](report)
    for task in report.tasks:
        for sentence in task.missing:
            assert sentence in text.replace("\\_", "_")


@pytest.mark.parametrize("form", FORMS)
def test_the_same_cells_give_the_same_bytes(folder, form, tmp_path) -> None:
    paths = [tmp_path / f"{name}{form}" for name in ("one", "two")]
    for path in paths:
        write_report(folder, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert str(folder) not in paths[0].read_text(), "a page may travel"
    assert len(list(tmp_path.iterdir())) == 2


def test_names_are_harmless_in_a_page(hostile) -> None:
    page = to_html(hostile)
    parser = Tables(page)
    assert parser.tags.count("script") == 3, "the data and the two of the page's own"
    assert "<script>alert" not in page
    assert any("<script>alert(1)<" in cell for row in parser.rows for cell in row)
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    names = [m["name"] for m in json.loads(data)["tasks"][0]["methods"]]
    assert names == list(hostile.rows)


def test_names_are_harmless_in_markdown(hostile) -> None:
    text = to_markdown_report(hostile)
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("| a \\| b \\`c\\` \\*d\\* ")]
    assert len(rows) == 2
    heads = next(line for line in text.splitlines() if line.startswith("|  | seeds"))
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == len(re.findall(r"(?<!\\)\|", heads))


def test_names_are_harmless_in_latex(hostile) -> None:
    assert escape("50% & more_$^{2}~ \\x #1") == (
        r"50\% \& more\_\$\textasciicircum{}\{2\}\textasciitilde{} \textbackslash{}x \#1"
    )
    assert escape("two\nlines\\\\") == r"two lines\textbackslash{}\textbackslash{}"
    text = to_latex(hostile)
    assert escape("50% & more_$^{2}~ \\x #1") in text
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert len(comments) == 2
    assert "blob, seed 0" in comments[1]
    bare = re.sub(r"\\[a-zA-Z]+|\\.|\$[^$]*\$", "", text.replace("\n".join(comments[1:]), ""))
    assert not set('<>#^~|_"') & set(bare.split("\\begin", 1)[-1])


def test_a_page_stays_small(report) -> None:
    page = len(to_html(report).encode())
    empty = len(to_html(report).split('id="data">')[0].encode())
    methods = sum(len(task.methods) for task in report.tasks)
    assert (page - empty) / methods * 84 + empty < 2e6, "4 tasks × 21 rows × 3 seeds"


def test_a_report_of_one_seed_has_no_standard_error(hostile) -> None:
    assert hostile.tasks[0].methods[0].entry.values["NLL"].error is None
    rows = [line for line in to_markdown_report(hostile).splitlines() if line.startswith("| a ")]
    assert numbers(rows[0])
    assert "±" not in rows[0]
    assert 'class="error"' not in to_html(hostile)
    assert "scriptsize" not in to_latex(hostile)


def test_an_empty_task_is_named(tmp_path) -> None:
    rows = {"map": ROWS["map"]}
    suite = made_suite(rows, ["sentiment", "intents"], seeds=1)
    make(tmp_path, made_suite(rows, ["sentiment"], seeds=1), rows)
    write_plan(Plan.of(suite, tmp_path, list(suite.tasks), ["map"], 1))
    report = gather(tmp_path)
    assert "There is nothing to show yet." in to_html(report)
    assert "map: left out until every learning rate" in to_markdown_report(report)
    assert "intents: map: left out" in to_latex(report)


def test_a_page_without_jinja_says_what_to_install(report, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"bayestune\[report\]"):
        to_html(report)


def test_no_line_of_the_page_could_end_its_script() -> None:
    from importlib.resources import files

    for file in (files("bayestune.report") / "page").iterdir():
        if file.name != "page.html":
            text = file.read_text("utf-8")
            assert "</" not in text.replace("</=", "")
            assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
