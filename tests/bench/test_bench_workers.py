"""Trainings side by side: the same cells, and what becomes of a worker that dies."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal

import pytest
from bench_checks import numbers

from bayestune.bench import Plan, read, read_arrays, read_suite, run
from bayestune.errors import BayestuneError, ModelError

TWO = ("cpu", "cpu")


@pytest.fixture(scope="module")
def killed(suite, data, tmp_path_factory):
    """A benchmark of which one worker was killed as the first cell was there."""
    plan = Plan.of(suite, tmp_path_factory.mktemp("killed"), ["topics"], ["cooled"], 1)
    others = set(multiprocessing.active_children())

    def kill(cell, done):
        worker = (set(multiprocessing.active_children()) - others).pop()
        os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(BayestuneError) as caught:
        run(plan, data, TWO, kill)
    there = set(plan.written("topics"))
    run(plan, data, TWO)
    return plan, str(caught.value), there


def test_a_worker_that_dies_is_told(killed):
    plan, sentence, there = killed
    assert "A worker's process died (killed, or out of memory?)" in sentence
    assert "topics mle seed 0 lr 0.0" in sentence or "topics cooled" in sentence
    assert f"{plan.out} holds what was complete: run the same again" in sentence
    assert 1 <= len(there) < plan.total
    assert not multiprocessing.active_children()


def test_two_give_the_same_cells_as_one(killed, complete):
    plan = killed[0]
    assert plan.todo() == ([], plan.total)
    for key in plan.written("topics"):
        mine, other = numbers(read(key, plan.out)), numbers(read(key, complete.out))
        for each in (mine, other):
            del each["intervals"]  # of more resamples
        assert mine == other, key
        arrays, others = read_arrays(key, plan.out), read_arrays(key, complete.out)
        assert arrays.keys() == others.keys()
        assert all(arrays[name].equal(others[name]) for name in arrays), key


def test_an_error_in_a_worker_arrives(content, make_plan, data):
    content = copy.deepcopy(content)
    content["recipe"]["model"] = str(data)  # which holds no model
    plan = make_plan(read_suite(content, "small"), rows=["mle"])
    with pytest.raises(ModelError, match=str(data)):
        run(plan, data, TWO)
    assert not list(plan.written("topics"))
