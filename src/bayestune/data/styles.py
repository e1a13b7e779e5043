"""How the papers' code words the questions of the common-sense tasks, and the tokens that answer.

Every style is the prompt that a repository really sends, slips included: published numbers depend
on it. Choices are lettered A, B, … whatever the data set calls them.

| style | of | answers |
|---|---|---|
| ``blob`` | BLoB, TFB and their baselines (Wang-ML-Lab/bayesian-peft) | letters; True, False |
| ``laplace_lora`` | Laplace-LoRA, IVON-LoRA, SWAG-LoRA (adamxyang/laplace-lora) | the same |
| ``scalabl`` | ScalaBL and its baselines (SRI-CSL/BayesAdapt) | letters; true, false |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from bayestune.data.example import LETTERS, Example
from bayestune.errors import DataError

#: ``ours`` is the task's default template; see `bayestune.data.prompt`.
Style = Literal["ours", "blob", "laplace_lora", "scalabl"]
#: The data sets that some style words in its own way; ``arc`` is any list of choices.
Wording = Literal["arc", "boolq", "mmlu", "openbookqa", "winogrande"]

STYLES: tuple[Style, ...] = get_args(Style)
WORDINGS: tuple[Wording, ...] = get_args(Wording)

_BOOLEAN = (("no", "yes"), ("false", "true"))


def wording(example: Example) -> Wording:
    """Return which data set an example has the form of.

    Raises:
        DataError: if it is no question, or one about a passage that is not answered by no or yes.
    """
    if example.question is None or example.choices is None:
        raise DataError(
            f"Example {example.id!r} is no question with choices, and the papers' prompts "
            "(prompt.style) ask nothing else; use prompt.template."
        )
    if example.passage is not None:
        if tuple(choice.strip().lower() for choice in example.choices) not in _BOOLEAN:
            raise DataError(
                f"Example {example.id!r} has a passage and the choices {list(example.choices)}; "
                "the papers' prompts (prompt.style) ask about passages for no and yes only, in "
                "this order; use prompt.template."
            )
        return "boolq"
    return "winogrande" if len(example.choices) == 2 and "_" in example.question else "arc"


def ask(example: Example, style: Style, dataset: Wording | None = None, chat: bool = False) -> str:
    """Return the prompt of an example in the style of a paper's code.

    Args:
        example: a question with choices.
        style: whose prompt.
        dataset: whose wording, where the form of the rows does not tell: ``openbookqa`` and
            ``mmlu`` look like ``arc``.
        chat: whether it is the user's turn of a chat.

    Raises:
        DataError: if the style has no prompt for such an example.
    """
    form = wording(example)
    return _ASK[style](example, dataset if dataset is not None and form == "arc" else form, chat)


def answers(example: Example, style: Style, letters: Sequence[str]) -> tuple[str, ...]:
    """Return the words of the vocabulary that answer, one per class, in the classes' order."""
    if wording(example) != "boolq":
        return tuple(letters)
    return ("false", "true") if style == "scalabl" else ("False", "True")


def _blob(example: Example, form: Wording, chat: bool) -> str:
    if form == "boolq":
        return (
            "Read the passage below and answer the question with the words 'true' or 'false'."
            f"\n\nPassage: {(example.passage or '')[:1024]}\nQuestion: {example.question}"
            "\nAnswer (true or false):"
        )
    swapped = form in ("arc", "openbookqa")
    lines = [f"{text}) {a}" if swapped else f"{a}) {text}" for a, text in _lettered(example)]
    title = "Chioces:" if form == "openbookqa" else "Choices:"
    return "\n".join(
        [
            "Return the label of the correct answer for the question below.\n",
            f"Question: {example.question}",
            title,
            *lines,
            "Answer:",
        ]
    )


def _laplace_lora(example: Example, form: Wording, chat: bool) -> str:
    if form == "boolq":
        return (
            f"Answer the question with only True or False: {example.question} "
            f"Context: {example.passage}"
        )
    if form == "winogrande":
        listed = "A. {}. B {}.".format(*example.choices or ())
    else:
        listed = " ".join(f"{a}. {_sentence(text)}" for a, text in _lettered(example))
    return (
        "Select one of the choices that answers the following question: "
        f"{example.question} Choices: {listed} Answer:"
    )


def _scalabl(example: Example, form: Wording, chat: bool) -> str:
    lines = [f"{a}) {text}" for a, text in _lettered(example)]
    if form == "boolq":
        parts = [
            "Read the passage below and answer the question with the words 'true' or 'false'.",
            f"Passage: {example.passage}",
            f"Question: {example.question}?",
        ]
    elif form == "winogrande":
        parts = [
            "For the sentence given below, select the answer that best fills in the blank (_) "
            "from the given choices.",
            f"{example.question}",
            "Choices:",
            *lines,
        ]
    else:
        parts = [
            "Answer the multiple choice question below. Output the letter of your choice only.",
            f"{example.question}",
            "Choices:",
            *lines,
        ]
    return "\n".join(parts if chat else [*parts, "Answer:"])


_ASK: dict[str, Callable[[Example, Wording, bool], str]] = {
    "blob": _blob,
    "laplace_lora": _laplace_lora,
    "scalabl": _scalabl,
}


def _lettered(example: Example) -> list[tuple[str, str]]:
    return list(zip(LETTERS, example.choices or (), strict=False))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
