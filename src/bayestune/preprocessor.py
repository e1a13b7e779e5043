"""Everything left of the backbone: from texts, pairs and rows to the token ids it reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayestune.data import Encoded, PromptConfig, Task, encode, render
from bayestune.errors import DataError

logger = logging.getLogger(__name__)

Texts = str | Sequence[str] | Sequence[tuple[str, str]] | Sequence[Mapping[str, Any]] | Task


@dataclass(frozen=True)
class Preprocessor:
    """What a model makes of texts; it needs no backbone.

    Attributes:
        task: kind, classes and columns; without examples.
        prompt: how an example becomes a prompt.
        tokenizer: the backbone's own.
        decoder: whether the end of a prompt is read; it is then the beginning that is cut.
        max_length: how many tokens of a prompt are read at most.
    """

    task: Task
    prompt: PromptConfig
    tokenizer: Any
    decoder: bool
    max_length: int

    def read(self, texts: Texts) -> Task:
        """Return texts, pairs, rows or a task as examples of this task.

        Raises:
            DataError: if they are not of its kind, or offer more choices than it has letters.
        """
        if isinstance(texts, Task):
            if texts.kind != self.task.kind:
                raise DataError(
                    f"The model reads {self.task.kind} tasks; {texts.title} is {texts.kind}. Build "
                    "it with labels=train, the task itself."
                )
            most = max(texts.choice_counts or (0,))
            if most > len(self.task.labels):
                raise DataError(
                    f"{texts.title}: a row has {most} choices; the model was built "
                    f"for at most {len(self.task.labels)}."
                )
            return texts
        items = [texts] if isinstance(texts, str) else list(texts)
        if not items:
            return self.task
        if isinstance(items[0], Mapping):
            return Task.from_rows(items, like=self.task, require_labels=False)  # pyright: ignore
        return Task.from_texts(items, like=self.task)  # pyright: ignore[reportArgumentType]

    def tokenize(self, task: Task) -> Encoded:
        """Return the token ids of a task's prompts, and how many were cut."""
        prompts = [
            render(example, self.prompt, decoder=self.decoder, tokenizer=self.tokenizer)
            for example in task
        ]
        return encode(self.tokenizer, prompts, self.max_length, self.decoder)

    def encode(self, task: Task) -> Encoded:
        """Return the token ids of a task's prompts, warning of those that are cut."""
        encoded = self.tokenize(task)
        if encoded.truncated:
            logger.warning(
                "%d of %d prompts have more than %d tokens (prompt.max_length) and lost their %s",
                encoded.truncated,
                len(task),
                self.max_length,
                "beginning" if self.decoder else "end",
            )
        return encoded

    def mask(self, task: Task) -> Tensor | None:
        """Return which classes exist for each example ``(N, K)``; None where all do."""
        counts, classes = task.choice_counts, len(self.task.labels)
        if counts is None or all(count == classes for count in counts):
            return None
        return torch.arange(classes) < torch.tensor(counts)[:, None]  # (N, K)
