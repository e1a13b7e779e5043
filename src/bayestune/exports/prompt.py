"""What texts must look like for a model that no longer makes its own prompts."""

from __future__ import annotations

import json
from typing import Any

from bayestune.data import Example, render
from bayestune.exports.plain import is_classifier
from bayestune.model import BayesModel


def prompt_section(model: BayesModel) -> str:
    """Return how a text becomes the prompt that the model was trained with, in Markdown."""
    config, decoder = model.recipe.prompt, model.backbone.decoder
    shape = render(_blank(model), config, decoder=decoder, tokenizer=model.tokenizer)
    lines = ["Texts were read in this form (JSON; what stands in braces is yours):", "", "```json"]
    lines += [json.dumps(shape, ensure_ascii=False), "```", ""]
    end = "beginning, so that the end stays" if decoder else "end"
    lines += [f"- Prompts of more than {config.max_length} tokens lost their {end}."]
    bos = model.tokenizer.bos_token
    if isinstance(shape, str) and bos and shape.startswith(bos):
        lines += [f"- It begins with `{bos}` itself: encode it with `add_special_tokens=False`."]
    lines += [f"- {line}" for line in (*_padding(model), *_outputs(model))]
    return "\n".join(lines) + "\n"


def _blank(model: BayesModel) -> Example:
    """Return an example whose fields are their own names."""
    task, template = model.task, model.recipe.prompt.template or ""
    if task.kind != "choice":
        second = None if task.fields.text2 is None else "{text2}"
        return Example(id=0, text="{text}", text2=second)
    choices = tuple(f"{{choice {letter}}}" for letter in model.labels)
    passage = "{passage}" if "{passage}" in template else None
    return Example(id=0, question="{question}", choices=choices, passage=passage)


def _padding(model: BayesModel) -> list[str]:
    if not is_classifier(model):
        kind = {
            "last": "the last token",
            "mean": "the mean of all tokens",
            "cls": "the first token",
        }
        return [
            f"The head reads {kind[model.backbone.pooling]} of the final states, padding left out."
        ]
    pad = padding_id(model)
    token = model.tokenizer.convert_ids_to_tokens(pad)
    line = (
        f"transformers' classifiers read the last token that is not `{token}`, `pad_token_id` "
        f"{pad}: pad with it, and let no text end in it."
    )
    return [line]


def padding_id(model: BayesModel) -> int:
    """Return the token that stands for padding: the tokenizer's, else the configuration's."""
    transformer: Any = model.backbone.transformer
    own = model.tokenizer.pad_token_id
    return transformer.config.pad_token_id if own is None else own


def _outputs(model: BayesModel) -> list[str]:
    if model.task.kind == "regression":
        mean, std = model.scaling.mean, model.scaling.std
        return [f"The number is {mean!r} + {std!r} × the one logit."]
    names = json.dumps(list(model.labels), ensure_ascii=False)
    lines = [f"The classes, in the order of the logits: {names}."]
    if model.task.kind == "choice":
        lines += [
            "Of a question with fewer choices, leave out the logits of those it does not have."
        ]
    return lines
