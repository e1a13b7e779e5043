"""From an example to the text that a backbone reads."""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bayestune.data.example import LETTERS, Example
from bayestune.data.styles import STYLES, WORDINGS, Style, Wording, ask
from bayestune.errors import ConfigError, DataError, nearest

PROMPT_FIELDS = ("text", "text2", "question", "choices", "passage")

# "Answer:" and "Label:" end without a space: the space belongs to the token that answers.
DEFAULT_DECODER = "{text}\nLabel:"
DEFAULT_DECODER_PAIR = "{text}\n{text2}\nLabel:"
DEFAULT_CHOICE = "{question}\n{choices}\nAnswer:"
DEFAULT_CHOICE_PASSAGE = "{passage}\n{question}\n{choices}\nAnswer:"


@dataclass(frozen=True)
class PromptConfig:
    """How examples become prompts.

    Args:
        template: text with ``{text}``, ``{text2}``, ``{question}``, ``{choices}`` and
            ``{passage}``; ``{{`` and ``}}`` are braces. None takes the default of the task:
            ``"{text}\\nLabel:"`` for a decoder, the bare text (or pair) for an encoder, and for a
            question with choices the passage, the question, lettered choices and ``"Answer:"``.
        chat: whether the prompt is the user's turn in the tokenizer's chat template.
        max_length: the longest prompt in tokens, specials included.
        system: the system message of a chat.
        style: ``"ours"``, or whose published prompt takes the place of the template: ``"blob"``,
            ``"laplace_lora"`` or ``"scalabl"``; see `bayestune.data.styles`.
        dataset: whose wording of that prompt, where the form of the rows does not tell:
            ``"openbookqa"`` or ``"mmlu"``.

    Raises:
        ConfigError: if the template names another field or none, ends in a space, or the rest
            makes no sense together.
    """

    template: str | None = None
    chat: bool = False
    max_length: int = 512
    system: str | None = None
    style: Style = "ours"
    dataset: Wording | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int):
            raise ConfigError(f"max_length is {self.max_length!r}; it must be an integer.")
        if self.max_length < 1:
            raise ConfigError(f"max_length is {self.max_length}; it must be at least 1.")
        if self.system is not None and not self.chat:
            raise ConfigError("A system message needs chat: true; without a chat there is none.")
        if self.style not in STYLES:
            raise ConfigError(f"Unknown style {self.style!r}.{nearest(self.style, STYLES)}")
        if self.dataset is not None and self.dataset not in WORDINGS:
            raise ConfigError(f"Unknown dataset {self.dataset!r}.{nearest(self.dataset, WORDINGS)}")
        if self.template is not None:
            if self.style != "ours":
                raise ConfigError(
                    f"A template and the style {self.style} both say how to ask: give one of them."
                )
            parse_template(self.template)


@lru_cache(maxsize=64)
def parse_template(template: str) -> tuple[tuple[str, str | None], ...]:
    """Split a template into pairs of literal text and the field that follows it, or None.

    Raises:
        ConfigError: if it is not a template of the prompt fields.
    """
    valid = ", ".join(f"{{{name}}}" for name in PROMPT_FIELDS)
    try:
        parts = tuple(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"The template {template!r} is not well formed ({error}); write {{{{ and }}}} for "
            "braces that are text."
        ) from error
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in PROMPT_FIELDS:
            raise ConfigError(
                f"The template names an unknown field {{{name}}}.{nearest(name, PROMPT_FIELDS)}"
            )
        if spec or conversion:
            raise ConfigError(f"The template formats {{{name}}}; write the field alone: {valid}.")
    if all(name is None for _, name, _, _ in parts):
        raise ConfigError(f"The template {template!r} names no field; use some of {valid}.")
    if template.endswith((" ", "\t")):
        raise ConfigError(
            f"The template {template!r} ends in a space; end it at the last word, because the "
            "space belongs to the token that answers."
        )
    return tuple((literal, name) for literal, name, _, _ in parts)


def render(
    example: Example, config: PromptConfig, *, decoder: bool, tokenizer: Any = None
) -> str | tuple[str, str]:
    """Return the prompt of an example; a pair of texts for an encoder that is given two.

    Args:
        example: the item.
        config: template, chat and system message.
        decoder: whether the backbone reads its answer after the last token.
        tokenizer: needed for a chat; its template ends in the slot of the assistant's answer.

    Raises:
        ConfigError: if the tokenizer has no chat template or the template refuses the messages.
        DataError: if the template names a field that the example does not have.
    """
    template = config.template
    if config.style != "ours":
        prompt = ask(example, config.style, config.dataset, config.chat)
        return _chat(prompt, config.system, tokenizer) if config.chat else prompt
    if template is None:
        if example.question is not None:
            template = DEFAULT_CHOICE if example.passage is None else DEFAULT_CHOICE_PASSAGE
        elif not decoder and not config.chat:
            pair = example.text2 is not None
            return (
                (_value(example, "text"), _value(example, "text2"))
                if pair
                else _value(example, "text")
            )
        else:
            template = DEFAULT_DECODER if example.text2 is None else DEFAULT_DECODER_PAIR
    prompt = _fill(template, example)
    return _chat(prompt, config.system, tokenizer) if config.chat else prompt


def _fill(template: str, example: Example) -> str:
    # Joined part by part, so that braces in the data are never read as fields.
    parts = parse_template(template)
    filled = "".join(
        literal + (_value(example, name) if name is not None else "") for literal, name in parts
    )
    return filled.rstrip(" \t") if parts[-1][1] is not None else filled


def _value(example: Example, name: str) -> str:
    if name == "choices" and example.choices is not None:
        pairs = zip(LETTERS, example.choices, strict=False)
        return "\n".join(f"{letter}) {choice}" for letter, choice in pairs)
    value = getattr(example, name)
    if value is None:
        raise DataError(f"The template names {{{name}}}, but example {example.id!r} has no {name}.")
    return value


def _chat(content: str, system: str | None, tokenizer: Any) -> str:
    from jinja2 import TemplateError

    if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            "chat is on, but the tokenizer has no chat template; use chat: false or an "
            "instruction-tuned model."
        )
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        # Templates that do not think ignore enable_thinking; those that do close the thought, so
        # that the next token is the answer.
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except TemplateError as error:
        hint = " Drop the system message?" if system is not None else ""
        raise ConfigError(f"The chat template refuses the messages ({error}).{hint}") from error
