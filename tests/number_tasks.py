"""Toy tasks of numbers."""

from __future__ import annotations

from typing import Any

from toy_tasks import number_rows

from bayestune.data import Task


def number_task(count: int, seed: int = 0, **options: Any) -> Task:
    """Return `toy_tasks.number_rows` as a task of kind regression."""
    return Task.from_rows(number_rows(count, seed, **options), kind="regression")
