"""From prompts to token ids, without padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bayestune.errors import ConfigError, DataError, ModelError


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompts.

    Args:
        ids: one list per prompt, of its own length.
        token_type_ids: the same shape for pairs of an encoder that tells the two apart, else None.
        truncated: how many prompts were cut.
    """

    ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    truncated: int

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each prompt."""
        return [len(row) for row in self.ids]

    def select(self, rows: Iterable[int]) -> Encoded:
        """Return some prompts, in this order; how many of them were cut is not known."""
        chosen = list(rows)
        types = self.token_type_ids
        return Encoded(
            [self.ids[i] for i in chosen],
            None if types is None else [types[i] for i in chosen],
            0,
        )


def encode(
    tokenizer: Any, prompts: Sequence[str | tuple[str, str]], max_length: int, decoder: bool
) -> Encoded:
    """Encode prompts, cutting those of more than ``max_length`` tokens.

    A decoder's prompt loses its beginning, for its answer slot is at the end; the specials that
    the tokenizer adds on either side stay. An encoder's prompt loses its end, a pair's longer
    text first, as the tokenizer itself does it. A prompt that already begins with the BOS token,
    as chat templates write it, gets no second one.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompts: all texts, or for an encoder all pairs.
        max_length: the most tokens of a prompt, specials included.
        decoder: which end to keep.

    Raises:
        ConfigError: if the length leaves no room, is more than the tokenizer's model reads, or
            pairs are given to a decoder.
        DataError: if a prompt has no tokens.
    """
    pair = _are_pairs(prompts)
    if pair and decoder:
        raise ConfigError("A decoder reads one text; join the pair with a template.")
    specials = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length <= specials:
        raise ConfigError(
            f"max_length is {max_length}, but the tokenizer alone adds {specials} special tokens."
        )
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None and max_length > longest:
        raise ConfigError(
            f"max_length is {max_length}, but the tokenizer's model reads at most {longest} tokens."
        )
    if not prompts:
        return Encoded([], None, 0)
    encoded = _encode_decoder if decoder else _encode_encoder
    result = encoded(tokenizer, list(prompts), max_length)
    for i, row in enumerate(result.ids):
        if not row:
            raise DataError(
                f"Prompt {i} has no tokens: its text is empty and the template adds nothing."
            )
    return result


def _are_pairs(prompts: Sequence[str | tuple[str, str]]) -> bool:
    pairs = sum(not isinstance(prompt, str) for prompt in prompts)
    if pairs not in (0, len(prompts)):
        raise ConfigError(f"{pairs} of {len(prompts)} prompts are pairs; all must be or none.")
    return pairs > 0


def _encode_decoder(tokenizer: Any, prompts: list[Any], max_length: int) -> Encoded:
    bos = tokenizer.bos_token
    keeps_bos = tokenizer.num_special_tokens_to_add(pair=False) > 0
    written = [bool(bos) and prompt.startswith(bos) for prompt in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    truncated = 0
    for own_bos in (False, True):
        chosen = [i for i, own in enumerate(written) if own is own_bos]
        if not chosen:
            continue
        batch = tokenizer(
            [prompts[i] for i in chosen],
            add_special_tokens=not own_bos,
            padding=False,
            truncation=False,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        rows = zip(chosen, batch["input_ids"], batch["special_tokens_mask"], strict=True)
        for i, row, mask in rows:
            head = int(keeps_bos) if own_bos else _run(mask)
            ids[i] = keep_end(row, max_length, head)
            truncated += len(row) > max_length
    return Encoded(ids, None, truncated)


def _run(mask: Sequence[int]) -> int:
    """Return how many ones the mask begins with."""
    return next((i for i, special in enumerate(mask) if not special), len(mask))


def keep_end(row: Sequence[int], max_length: int, head: int) -> list[int]:
    """Cut behind the first ``head`` tokens so that ``max_length`` stay, the end among them."""
    if len(row) <= max_length:
        return list(row)
    return [*row[:head], *row[len(row) - (max_length - head) :]]


def _encode_encoder(tokenizer: Any, prompts: list[Any], max_length: int) -> Encoded:
    pair = not isinstance(prompts[0], str)
    ids, types = _call(tokenizer, prompts, None)
    long = [i for i, row in enumerate(ids) if len(row) > max_length]
    if long:
        cut = _call(tokenizer, [prompts[i] for i in long], max_length)
        for i, row, row_types in zip(long, *cut, strict=True):
            ids[i], types[i] = row, row_types
    return Encoded(ids, types if pair and any(types) else None, len(long))


def _call(
    tokenizer: Any, prompts: Sequence[str | tuple[str, str]], max_length: int | None
) -> tuple[list[list[int]], list[list[int]]]:
    first = [prompt if isinstance(prompt, str) else prompt[0] for prompt in prompts]
    second = [prompt[1] for prompt in prompts if not isinstance(prompt, str)]
    batch = tokenizer(
        first,
        second or None,
        padding=False,
        truncation="longest_first" if max_length is not None else False,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
    types = batch.get("token_type_ids", [[] for _ in prompts])
    return [list(row) for row in batch["input_ids"]], [list(row) for row in types]


def label_token_ids(tokenizer: Any, prompt: str, labels: Sequence[str]) -> list[int]:
    """Return the one token by which the prompt goes on to each label.

    The prompt is encoded with and without each label after it, so that neither a BOS token nor a
    merge across the border is mistaken for the label. After white space the label follows
    directly, elsewhere after a space; the other way is tried where the first one does not give
    one token for every label.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: a prompt as it is rendered, its answer slot at the end.
        labels: the answers, such as the letters A, B, ….

    Raises:
        ModelError: if a label is not one token after the prompt, or two labels share theirs.
    """
    before = _plain(tokenizer, prompt)
    separators = ("", " ") if prompt[-1:].isspace() else (" ", "")
    problems: list[str] = []
    for separator in separators:
        found: list[int] = []
        for label in labels:
            after = _plain(tokenizer, prompt + separator + label)
            if after[:-1] != before:
                tokens = tokenizer.convert_ids_to_tokens(after[_common(before, after) :])
                problems.append(f"{separator + label!r} gives {tokens}")
                break
            found.append(after[-1])
        else:
            if len(set(found)) == len(found):
                return found
            problems.append(f"with {separator!r} before them two labels share a token")
    raise ModelError(
        f"The labels are not single tokens after the prompt's end {prompt[-20:]!r}: "
        f"{'; '.join(problems)}. End the template in a word and a colon, such as 'Answer:'."
    )


def bare_token_ids(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """Return the last token of each answer as it is encoded by itself, with no prompt before it.

    A byte-level BPE gives the word without a space before it, SentencePiece with one.

    Raises:
        ModelError: if two answers share theirs.
    """
    found = [_plain(tokenizer, answer)[-1] for answer in answers]
    if len(set(found)) < len(found):
        raise ModelError(
            f"Of the answers {list(answers)} two end in the same token of this model's "
            "tokenizer; use prompt.style=ours."
        )
    return found


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
