"""The page in a browser: typing, the slider, files, errors, the keyboard, its own network."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from toy_tasks import topic_rows

import bayestune as bt
from bayestune.serve import Limits, Runs, listen, make_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TEXT = topic_rows(1, 5)[0]["text"]


@pytest.fixture(scope="module")
def address(served: Path, trained_mle: Any, tmp_path_factory) -> Iterator[str]:
    """A server in a thread, over a calibrated run and a point that is not calibrated."""
    plain = tmp_path_factory.mktemp("plain") / "plain"
    trained_mle.save(plain)
    app = make_app(Runs([str(served), str(plain)]), Limits(request_rows=40))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on", ws="none"))
    with listen("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(params=[1280, 375], ids=["desk", "phone"])
def page(request, browser: Browser, address: str) -> Iterator[Page]:
    """The page, which asks nobody but its server and does not complain."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    found = context.new_page()
    found.set_default_timeout(15_000)
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("dialog", lambda dialog: complaints.append(dialog.message))
    own = (address, "blob:", "data:")
    found.on(
        "request",
        lambda asked: asked.url.startswith(own) or complaints.append(asked.url),
    )
    found.goto(address)
    found.wait_for_selector("textarea")
    yield found
    context.close()
    assert not complaints


def settled(page: Page, label: str | None = None) -> None:
    page.wait_for_selector('#answer:not([hidden])[aria-busy="false"]')
    if label is not None:
        page.wait_for_function("l => document.getElementById('label').textContent === l", arg=label)


def listed(page: Page, text: str) -> None:
    first = "t => document.querySelector('#history .what')?.textContent === t"
    page.wait_for_function(first, arg=text)


def test_what_is_typed_is_answered_as_offline(page, served) -> None:
    expected = next(bt.load(served).predict([TEXT]).rows([1]))
    page.keyboard.type(TEXT)  # the field has the focus
    listed(page, TEXT)
    settled(page, expected["label"])
    rows = page.locator("#bars .row")
    assert rows.count() == len(expected["probs"])
    best = max(expected["probs"].values())
    assert abs(float(rows.first.locator(".value").text_content().split()[0]) / 100 - best) < 0.006
    assert re.search(r"from .* to ", rows.first.get_attribute("aria-label"))
    inside = page.locator("#bars .row.in .name").all_text_contents()
    assert sorted(inside) == sorted(expected["set"])
    chip = page.locator("#decision").text_content()
    assert chip == ("abstains" if expected["abstain"] else "answers")
    assert page.locator("#aleatoric-value").text_content().endswith("nats")
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0, "nothing sticks out"


def test_the_slider_decides_again_without_a_request(page) -> None:
    page.fill("textarea", TEXT)
    settled(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    slider = page.locator("#risk")
    slider.focus()
    slider.press("Home")  # the least risk
    assert page.locator("#decision").text_content() == "abstains"
    assert "every text is abstained from" in page.locator("#risk-note").text_content()
    slider.press("End")
    assert page.locator("#risk-value").text_content() == "50.0 %"
    assert page.locator("#decision").text_content() == "answers"
    assert not asked


def test_thresholds_are_those_of_the_rule(page, served) -> None:
    rule = bt.load(served).guarantees.abstain
    for risk in (0.01, 0.05, 0.1, 0.2, 0.3, 0.45):
        found = page.evaluate("risk => position(run.abstain, risk)", risk)
        assert found == rule.at(risk)


def test_markup_in_a_text_stays_a_text(page) -> None:
    text = "<img src=x onerror=alert(1)> & <b>"
    page.fill("textarea", text)
    listed(page, text)
    assert page.locator("#history img").count() == 0


def test_a_file_is_scored_with_its_bad_lines_named(page, served, tmp_path) -> None:
    rows = [row["text"] for row in topic_rows(90, 8)]
    lines = [json.dumps({"text": text, "id": f"r{i}"}) for i, text in enumerate(rows)]
    lines[3], lines[70] = "{no json", json.dumps({"txt": "wrong column"})
    file = tmp_path / "some rows.jsonl"
    file.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    page.set_input_files("#file", str(file))
    page.wait_for_selector("#download:not([hidden])")
    assert page.locator("#job-note").text_content() == "some rows.jsonl: 90 of 90 rows, 2 bad"
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "some rows.predictions.jsonl"
    found = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert len(found) == 90 and "JSON" in found[3]["error"] and "'text'" in found[70]["error"]
    offline = list(bt.load(served).predict(rows).rows([f"r{i}" for i in range(90)]))
    for i, (one, expected) in enumerate(zip(found, offline, strict=True)):
        if i not in (3, 70):
            assert one["id"] == expected["id"] and one["label"] == expected["label"]
            assert one["probs"] == pytest.approx(expected["probs"], abs=1e-5)


def test_csv_cells_may_hold_commas_quotes_and_lines(page, served, tmp_path) -> None:
    texts = ['a "quoted", word', "two\nlines", "plain"]
    file = tmp_path / "rows.csv"
    cells = ['"a ""quoted"", word"', '"two\nlines"', "plain"]
    file.write_text("id,text\r\n" + "".join(f"{i},{c}\r\n" for i, c in enumerate(cells)))
    page.set_input_files("#file", str(file))
    page.wait_for_selector("#download:not([hidden])")
    with page.expect_download() as download:
        page.click("#download")
    found = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    offline = bt.load(served).predict(texts)
    assert [one["id"] for one in found] == ["0", "1", "2"]
    for one, probs in zip(found, offline.probs.tolist(), strict=True):
        assert list(one["probs"].values()) == pytest.approx(probs, abs=1e-5)


def test_another_run_without_promises_shows_none(page) -> None:
    page.select_option("#run", "plain")
    page.fill("textarea", TEXT)
    settled(page)
    assert page.locator("#risk-box").is_hidden()
    assert page.locator("#decision").text_content() == ""
    assert page.locator("line.whisker").count() == 0, "a point has no posterior"
    page.click("#card-box summary")
    page.wait_for_function("() => document.getElementById('card').textContent.includes('mle')")
    assert page.locator("#reliability").is_hidden(), "nobody measured it"


def test_what_was_measured_is_drawn(page, served) -> None:
    found = json.loads((served / "evaluation.json").read_text())
    page.click("#card-box summary")
    page.wait_for_selector("#reliability svg")
    assert page.locator("#reliability rect").count() == len(found["bins"])
    caption = page.locator("#reliability figcaption").text_content()
    assert caption.startswith("60 rows") and "ECE" in caption
    page.wait_for_function("() => document.getElementById('card').textContent.length > 500")
    assert "![" not in page.locator("#card").text_content()


def test_errors_and_a_silent_server_are_said(page) -> None:
    page.fill("textarea", "x" * 100_001)
    page.wait_for_function(
        "() => document.getElementById('problem').textContent.includes('characters')"
    )
    page.fill("textarea", TEXT)
    settled(page)
    assert page.locator("#problem").text_content() == ""
    page.context.set_offline(True)
    page.fill("textarea", TEXT + " again")
    page.wait_for_selector("#offline:not([hidden])")
    page.context.set_offline(False)  # it tries again by itself
    page.wait_for_selector("#offline", state="hidden")
    listed(page, TEXT + " again")


def test_the_list_brings_a_text_back(page) -> None:
    for text in (TEXT, "another one"):
        page.fill("textarea", text)
        listed(page, text)
    page.locator("#history button").nth(1).press("Enter")
    assert page.input_value("textarea") == TEXT
    listed(page, TEXT)
    assert page.locator("#history li").count() == 2


def test_the_keyboard_reaches_everything(page) -> None:
    page.fill("textarea", TEXT)
    settled(page)
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"risk", "file", "run", "SUMMARY"} <= seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(browser, address, scheme) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    names = ("paper", "panel", "ink", "quiet", "bad", "good", "bar")
    script = """names => Object.fromEntries(names.map(n => {
        const e = document.body.appendChild(document.createElement('i'));
        e.style.color = `var(--${n})`;
        return [n, getComputedStyle(e).color.match(/\\d+/g).map(Number)]; }))"""
    colours = page.evaluate(script, list(names))
    context.close()

    def light(rgb: list[int]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (v / 255 for v in rgb)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("paper", "panel"):
        for ink in ("ink", "quiet", "bad", "good", "bar"):
            a, b = sorted((light(colours[ground]), light(colours[ink])), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5, (scheme, ground, ink)
