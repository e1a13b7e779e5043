"""The table against numbers worked out by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from bench_checks import made_cell

from bayestune import metrics
from bayestune.bench import Key
from bayestune.bench.afterwards import set_size, tempered
from bayestune.bench.table import Estimate, compare, lines, markdown

LOW, HIGH = 1e-3, 2e-2
ROWS = 60


def losses(mean: float, seed: int, spread: float = 0.1) -> list[float]:
    draw = torch.randn(ROWS, generator=torch.Generator().manual_seed(seed))
    return (mean + spread * (draw - draw.mean()).clamp(-2, 2)).tolist()


@pytest.fixture
def filled(make_plan, suite):
    """Three rows on two seeds: `mle` clearly worse, `polar_vbll` and `borrowed` alike."""
    plan = make_plan()
    out = plan.out
    made_cell(suite, out, Key("topics", "mle", 0, LOW), 0.9, losses=losses(2.0, 9))
    common = losses(0.8, 3, 0.3)
    for seed in (0, 1):
        accuracy = {"accuracy": 0.7 + 0.1 * seed}
        made_cell(
            suite,
            out,
            Key("topics", "mle", seed, HIGH),
            0.5,
            losses=[1.0 + 0.1 * seed] * ROWS,
            metrics=accuracy,
            seconds=2.0 + seed,
        )
        made_cell(
            suite, out, Key("topics", "borrowed", seed, HIGH), losses=losses(0.8, 4 + seed, 0.3)
        )
        made_cell(
            suite,
            out,
            Key("topics", "polar_vbll", seed, HIGH),
            0.2,
            losses=[x - 0.001 for x in common],
            seconds=6.0,
        )
    made_cell(suite, out, Key("topics", "polar_vbll", 0, 4e-3), 0.3)
    return plan


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """Return the cells of a Markdown table by row and column."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    heads, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert all(len(row) == len(heads) for row in body)
    return {row[0]: dict(zip(heads, row, strict=True)) for row in body}


def test_a_temperature_by_the_held_out_rows():
    g = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(400, 3, generator=g) for name in ("val", "test")}
    labels = {
        name: torch.multinomial(z.softmax(1), 1, generator=g).squeeze(1)
        for name, z in logits.items()
    }
    sharp = {name: (2.5 * z).softmax(1) for name, z in logits.items()}
    # A class that does not exist stays so.
    sharp = {name: torch.nn.functional.pad(p, (0, 1)) for name, p in sharp.items()}
    found = tempered(
        {
            **{"probs": sharp["test"], "targets": labels["test"]},
            **{"val.probs": sharp["val"], "val.targets": labels["val"]},
        }
    )
    rows = torch.arange(400)

    def nll(name: str, t: float) -> float:
        powers = sharp[name].double() ** (1 / t)
        p = powers / powers.sum(1, keepdim=True)
        return -float(p[rows, labels[name]].log().mean())

    grid = torch.linspace(1.5, 4, 251).tolist()
    best = min(grid, key=lambda t: nll("val", t) + math.log(t) ** 2 / (2 * 0.25 * 400))
    assert found["T"] == pytest.approx(best, rel=0.02)
    assert 2.2 < best < 2.8, "what the rows were sharpened by"
    assert found["nll"] == pytest.approx(nll("test", best), rel=1e-3)
    assert found["nll"] < nll("test", 1.0) - 0.1
    assert found["ece"] < metrics.ece(sharp["test"], labels["test"]) / 2


@pytest.mark.parametrize(
    ("probs", "size"),
    [((0.97, 0.02, 0.01), 1.0), ((0.7, 0.29, 0.01), 2.0), ((0.6, 0.3, 0.1), 3.0)],
)
def test_sets_are_as_large_as_their_coverage_takes(probs, size):
    """Rows of one distribution: the sets are the fewest classes whose probabilities make 95 %."""
    counts = torch.tensor([round(400 * p) for p in probs])
    labels = torch.arange(3).repeat_interleave(counts)
    arrays = {"probs": torch.tensor(probs).expand(400, 3), "targets": labels}
    assert set_size(arrays) == size
    assert set_size({name: each[:1] for name, each in arrays.items()}) == 3, (
        "no row to calibrate on"
    )


def test_mean_and_standard_error(filled):
    found = rows_of(markdown(filled))
    # two seeds: the standard error is half the distance
    assert found["mle"]["acc"] == "0.750 ± 0.050"
    assert found["mle"]["NLL"] == "1.050 ± 0.050"
    assert found["mle"]["seeds"] == "2"
    assert found["mle"]["lr"] == "0.02"
    assert found["mle"]["OOD max-prob"] == "0.750 ± 0.000"
    assert (found["mle"]["trained"], found["mle"]["stored"]) == ("1,234", "5")


@pytest.mark.parametrize("values", [[0.1, 0.4, 0.7, 0.3], [1.0, 2.0]])
def test_spread_by_hand(values):
    n, mean = len(values), sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    assert Estimate.of(values).text() == f"{mean:.3f} ± {error:.3f}"
    assert Estimate.of(values[:1]).text() == f"{values[0]:.3f}"


def test_times_are_ratios_of_the_same_seed(filled):
    found = rows_of(markdown(filled))
    assert found["polar_vbll"]["train"] == f"{statistics.fmean([6 / 2, 6 / 3]):.1f}×"
    assert found["mle"]["train"] == found["mle"]["predict"] == "1.0×"


def test_paired_differences(filled):
    by_row = {line.row: line for line in lines(filled, "topics")}
    gap = compare(by_row["polar_vbll"], by_row["mle"], filled)
    difference = by_row["polar_vbll"].losses - by_row["mle"].losses
    assert difference.shape == (ROWS,)
    assert gap.mean == pytest.approx(difference.mean().item())
    # the bootstrap's interval of a mean is close to the normal one
    error = difference.std().item() / math.sqrt(ROWS)
    assert gap.low == pytest.approx(gap.mean - 1.96 * error, abs=0.3 * error)
    assert gap.high == pytest.approx(gap.mean + 1.96 * error, abs=0.3 * error)
    found = rows_of(markdown(filled))["polar_vbll"]["NLL − mle [95 %]"]
    assert found == f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def test_losses_are_averaged_over_seeds_row_by_row(filled, suite):
    line = next(line for line in lines(filled, "topics") if line.row == "borrowed")
    expected = torch.tensor([losses(0.8, 4, 0.3), losses(0.8, 5, 0.3)]).mean(0)
    assert line.losses.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_bold_is_what_nothing_beats_for_certain(filled):
    found = rows_of(markdown(filled))
    bold = {row for row, cells in found.items() if cells["NLL"].startswith("**")}
    assert bold == {"borrowed", "polar_vbll"}
    by_row = {line.row: line for line in lines(filled, "topics")}
    assert not metrics.paired_difference(
        by_row["borrowed"].losses, by_row["polar_vbll"].losses
    ).excludes_zero
    gaps = {row: cells["NLL − mle [95 %]"] for row, cells in found.items()}
    assert gaps["mle"] == ""
    against = rows_of(markdown(filled, "borrowed"))["polar_vbll"]["NLL − borrowed [95 %]"]
    assert against.endswith("(n.s.)")


def test_a_small_difference_that_is_certain_is_not_bold(make_plan, suite):
    plan = make_plan(suite.at_middle_rates(), seeds=1, rows=["mle", "borrowed"])
    one = losses(0.8, 3, 0.3)
    made_cell(plan.suite, plan.out, Key("topics", "mle", 0, LOW), losses=one)
    worse = [x + 0.01 for x in one]  # of every row: paired, a hundredth is certain
    made_cell(plan.suite, plan.out, Key("topics", "borrowed", 0, LOW), losses=worse)
    found = rows_of(markdown(plan))
    assert found["mle"]["NLL"].startswith("**")
    assert not found["borrowed"]["NLL"].startswith("**")


def test_rows_without_cells_are_left_out(filled):
    assert list(rows_of(markdown(filled))) == ["mle", "borrowed", "polar_vbll"]
    assert "cooled" not in markdown(filled)


def test_missing_and_broken_seeds(filled, suite, make_plan):
    made_cell(suite, filled.out, Key("topics", "polar_vbll", 1, HIGH), error="The loss is nan.")
    found = rows_of(markdown(make_plan(seeds=3)))
    assert found["polar_vbll"]["seeds"] == "1"
    assert found["mle"]["seeds"] == "2"
    by_row = {line.row: line for line in lines(filled, "topics")}
    gap = compare(by_row["polar_vbll"], by_row["mle"], filled)
    # on seed 0 alone, where mle loses 1.0 on every row
    assert gap.mean == pytest.approx(by_row["polar_vbll"].losses.mean().item() - 1.0, abs=1e-5)


def test_rows_without_a_common_seed(make_plan, suite):
    plan = make_plan(suite.at_middle_rates(), rows=["mle", "borrowed"])
    made_cell(plan.suite, plan.out, Key("topics", "mle", 0, LOW), losses=[0.1, 0.2])
    made_cell(plan.suite, plan.out, Key("topics", "borrowed", 0, LOW), error="The loss is nan.")
    made_cell(plan.suite, plan.out, Key("topics", "borrowed", 1, LOW), losses=[0.3, 0.4])
    found = rows_of(markdown(plan))["borrowed"]
    assert found["NLL − mle [95 %]"] == ""
    assert found["train"] == found["predict"] == "–"
    assert not found["NLL"].startswith("**")


def test_rates_that_are_not_tuned_are_named(filled, make_plan, suite, content):
    assert "not tuned" not in markdown(filled)
    middle = make_plan(suite.at_middle_rates())
    made_cell(suite, middle.out, Key("topics", "mle", 0, LOW))
    assert "Learning rate not tuned: all rows." in markdown(middle)
    content = {
        **content,
        "rows": {**content["rows"], "borrowed": {"method": "mle", "rates": [HIGH]}},
    }
    from bayestune.bench import read_suite

    some = make_plan(read_suite(content, "small"))
    assert "Learning rate not tuned: borrowed." in markdown(some)


def test_two_sets_from_elsewhere_have_columns_of_their_own(make_plan, suite):
    plan = make_plan(suite.at_middle_rates(), seeds=1, rows=["mle"])
    made_cell(plan.suite, plan.out, Key("topics", "mle", 0, LOW), ood=("far", "near"))
    text = markdown(plan)
    assert "Rows from elsewhere: far (12), near (12)." in text
    assert {"OOD MI, far", "OOD MI, near"} <= rows_of(text)["mle"].keys()


def test_nothing_yet(make_plan):
    assert markdown(make_plan()) == ""


def test_a_real_one(complete):
    found = rows_of(markdown(complete))
    assert list(found) == list(complete.rows)
    assert any(cells["NLL"].startswith("**") for cells in found.values())
    assert found["cooled"]["acc"] == found["mle"]["acc"]
