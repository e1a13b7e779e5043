"""Data: rows become examples of a task, examples become prompts, prompts become token ids.

Nothing here imports torch or a tokenizer before it is needed.
"""

from __future__ import annotations

from bayestune.data.batches import length_grouped_batches, packed_batches, pad
from bayestune.data.encode import Encoded, bare_token_ids, encode, label_token_ids
from bayestune.data.example import Example, Fields
from bayestune.data.labels import LabelSet
from bayestune.data.numbers import Scaling
from bayestune.data.prompt import PromptConfig, render
from bayestune.data.reading import TaskOptions
from bayestune.data.rows import open_tolerant, read_lines_tolerant, read_rows
from bayestune.data.styles import answers
from bayestune.data.task import Task

load_task = Task.load

__all__ = [
    "Encoded",
    "Example",
    "Fields",
    "LabelSet",
    "PromptConfig",
    "Scaling",
    "Task",
    "TaskOptions",
    "answers",
    "bare_token_ids",
    "encode",
    "label_token_ids",
    "length_grouped_batches",
    "load_task",
    "open_tolerant",
    "packed_batches",
    "pad",
    "read_lines_tolerant",
    "read_rows",
    "render",
]
