"""The page in a browser: sorted, chosen, dark and light, on a phone, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bayestune.report.html import to_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(params=[1280, 375], ids=["desk", "phone"])
def page(request, browser: Browser, page_file: Path) -> Iterator[Page]:
    """The page, which may complain of nothing and ask the network for nothing."""
    yield from _open(browser, page_file, request.param)


def _open(browser: Browser, path: Path, width: int, scheme: str = "light") -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    found = context.new_page()
    complaints: list[str] = []
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("dialog", lambda dialog: complaints.append(dialog.message))
    found.on("request", lambda asked: complaints.append(asked.url))
    found.goto(path.as_uri())
    yield found
    context.close()
    assert set(complaints) == {path.as_uri()}


def names(page: Page) -> list[str]:
    return page.locator("#task-0 table.methods tbody th .name").all_text_contents()


def column(page: Page, title: str) -> list[float]:
    place = page.locator("#task-0 table.methods thead th").all_text_contents()
    index = [head.strip() for head in place].index(title)
    cells = page.locator(f"#task-0 table.methods tbody tr > :nth-child({index + 1})")
    return [float(cell.get_attribute("data-value")) for cell in cells.all()]


def test_heads_sort_by_pointer_and_keyboard(page) -> None:
    first = names(page)
    head = page.locator("#task-0 th", has_text="NLL ↓")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "NLL ↓") == sorted(column(page, "NLL ↓"))
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "NLL ↓") == sorted(column(page, "NLL ↓"), reverse=True)
    page.locator("#task-0 th button", has_text="acc ↑").click()
    assert column(page, "acc ↑") == sorted(column(page, "acc ↑"), reverse=True), "best first"
    assert head.get_attribute("aria-sort") == "none"
    page.locator("#task-0 th button", has_text="method").click()
    assert names(page) == sorted(first)


def test_what_is_not_known_is_sorted_last(page) -> None:
    button = page.locator("#task-0 th button", has_text="NLL − mle")
    for _ in range(2):
        button.click()
        assert names(page)[-1] == "mle"


def test_the_theme_follows_the_system_and_can_be_switched(page) -> None:
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.locator("#theme").click()
    dark = ground()
    assert light != dark
    page.locator("#theme").click()
    assert ground() == light
    page.emulate_media(color_scheme="dark")
    assert ground() == light, "what was chosen stays"
    page.reload()
    assert ground() == dark
    page.emulate_media(media="print")
    assert ground() == light, "paper is white"


@pytest.fixture
def legend(page: Page) -> Page:
    """The page with its methods to choose from open, as they are not on a phone."""
    page.evaluate("document.querySelector('.legend').open = true")
    return page


def test_a_method_can_be_hidden_from_all_charts(legend) -> None:
    def drawn() -> int:
        return legend.locator("figure [data-row='4']").count()

    assert drawn() > 10
    assert legend.locator("#count").text_content() == "8 of 8"
    legend.locator(".legend label", has_text="blob").click()
    assert drawn() == 0
    assert legend.locator("figure [data-row='0']").count() > 10
    assert legend.locator("#count").text_content() == "7 of 8"
    legend.locator("[data-choose=none]").click()
    assert legend.locator("figure svg").count() == 0
    assert "No method is shown" in legend.locator("figure").first.text_content()
    legend.locator("[data-choose=first]").click()
    assert drawn() > 10


def test_every_chart_is_drawn(page) -> None:
    charts = page.locator("#task-1 figure")
    assert charts.count() == 8
    for chart in charts.all():
        assert chart.locator("svg").count() > 0
    assert page.locator("#task-0 [data-chart=reliability] .panel").count() == 8
    assert "×" in page.locator("#task-0 [data-chart=sweep] svg").text_content(), "blob broke off"


def test_choices_change_a_chart(page) -> None:
    roc = page.locator("#task-1 [data-chart=roc]")
    before = roc.locator("path").first.get_attribute("d")
    roc.locator("[name=score]").select_option("density")
    middle = roc.locator("path").first.get_attribute("d")
    roc.locator("[name=set]").select_option("numbers")
    assert len({before, middle, roc.locator("path").first.get_attribute("d")}) == 3
    for name, chart in (("cost", "cost"), ("quantity", "epochs")):
        figure = page.locator(f"#task-1 [data-chart={chart}]")
        options = figure.locator("option").all()
        pictures = set()
        for option in options:
            figure.locator(f"[name={name}]").select_option(option.get_attribute("value"))
            pictures.add(figure.locator(".plot").inner_html())
        assert len(pictures) == len(options)


def test_values_are_shown_by_pointer_and_by_arrow_keys(page) -> None:
    plot = page.locator("#task-0 [data-chart=gap] .plot")
    plot.scroll_into_view_if_needed()
    plot.locator("circle[data-row]").first.hover()
    assert page.locator("#tip").text_content().startswith("temperature\n")
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#spoken").text_content().startswith("map\n")
    page.keyboard.press("Escape")
    assert page.locator("#tip").text_content() == ""
    bars = page.locator("#task-0 [data-chart=reliability] .plot")
    bars.focus()
    page.keyboard.press("ArrowLeft")
    assert "predictions" in page.locator("#spoken").text_content()


def test_the_page_never_scrolls_sideways(legend) -> None:
    assert legend.evaluate("document.documentElement.scrollWidth <= innerWidth")
    legend.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert legend.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert legend.evaluate(
        "[...document.querySelectorAll('.scroll')].some((s) => s.scrollWidth > s.clientWidth)"
    ), "tables do, within themselves"


def test_tables_and_controls_have_their_markup(page) -> None:
    for table in page.locator("table").all():
        assert table.locator("thead th[scope=col]").count() > 0
        rows = table.locator("tbody tr").count()
        assert table.locator("tbody th[scope=row]").count() == rows
    assert page.locator("input:not(label input), select:not(label select)").count() == 0
    labels = page.locator("[role=group], [role=region]")
    assert all(each.get_attribute("aria-label") for each in labels.all())
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    tagged = page.locator("#task-0 tbody tr", has_text="control").count()
    assert tagged == 4


CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const linear = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  };
  const light = (colour) => {
    const [r, g, b] = linear(colour);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort();
    return (y + 0.05) / (x + 0.05);
  };
  const ground = getComputedStyle(document.body).backgroundColor;
  const probe = document.body.appendChild(document.createElement("i"));
  const of = (value, name = "") => {
    probe.className = name;
    probe.style.color = value;
    return ratio(getComputedStyle(probe).color, ground);
  };
  const text = ["--text", "--muted", "--accent", "--warn"].map((name) => of(`var(${name})`));
  const series = [0, 1, 2, 3, 4, 5, 6].map((i) => of("var(--series)", `s${i}`));
  return [Math.min(...text), Math.min(...series)];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(browser, page_file, scheme) -> None:
    for page in _open(browser, page_file, 1280, scheme):
        text, series = page.evaluate(CONTRAST)
        assert text > 4.5
        assert series > 3


def test_names_are_texts_and_nothing_else(browser, hostile, tmp_path) -> None:
    (tmp_path / "hostile.html").write_text(to_html(hostile), encoding="utf-8")
    for page in _open(browser, tmp_path / "hostile.html", 375):
        assert "<script>alert(1)<" in names(page)
        assert "<script>alert(1)<" in page.locator("[data-chart=reliability]").text_content()
        assert page.locator("script").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
