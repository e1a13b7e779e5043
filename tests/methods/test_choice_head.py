"""Multiple choice: classes are answer letters, absent ones do not exist, the LM head starts it."""

from __future__ import annotations

import pytest
import torch
from tiny_bases import move
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from bayestune import methods
from bayestune.data import Task
from bayestune.errors import ConfigError
from bayestune.head import GaussianHead, LinearHead
from bayestune.methods import parts


def asked(example) -> str:
    offered = zip("ABCD", example.choices, strict=False)
    listed = "\n".join(f"{letter}) {text}" for letter, text in offered)
    return f"{example.question}\n{listed}\nAnswer:"


@pytest.mark.parametrize("base", ["llama_base", "tied_base"])
@pytest.mark.parametrize("method", ["polar_vbll", "mle"])
def test_the_mean_logits_start_as_the_letter_logits_of_the_lm_head(
    request, make, choice, base, method
) -> None:
    folder = request.getfixturevalue(base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.config.tie_word_embeddings == (base == "tied_base")
    letters = tokenizer.convert_tokens_to_ids(["ĠA", "ĠB", "ĠC", "ĠD"])
    assert tokenizer.unk_token_id not in letters and len(set(letters)) == 4

    model = make(method, labels=choice, base=str(folder), layers="top:1")
    with torch.no_grad():
        mean = model.head(model.features(choice))
    for example, row in zip(choice, mean, strict=True):
        ids = torch.tensor([tokenizer(asked(example))["input_ids"]])
        with torch.no_grad():
            expected = plain(ids).logits[0, -1, letters]
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=2e-5)


def test_the_rows_follow_the_answers_of_the_prompts_style(make, choice, llama_base) -> None:
    rows = AutoModelForCausalLM.from_pretrained(llama_base).lm_head.weight
    tokenizer = AutoTokenizer.from_pretrained(llama_base)
    # This tokenizer puts a space before a text, as SentencePiece does: the letters are the same.
    letters = [tokenizer.encode(a, add_special_tokens=False)[-1] for a in "ABCD"]
    head = make(labels=choice, prompt={"style": "blob"}).head
    assert torch.equal(head.weight, rows[letters])

    words = {"?": 0, "A": 1, "B": 2, "False": 3, "True": 4, "false": 5, "true": 6}
    core = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    row = {"question": "is it", "passage": "It is."}
    truth = Task.from_rows([{**row, "answer": answer} for answer in (True, False)])
    for style, expected in {"blob": [3, 4], "laplace_lora": [3, 4], "scalabl": [5, 6]}.items():
        recipe = methods.recipe("mle", {"prompt": {"style": style}})
        assert parts._answer_tokens(tokenizer, truth, recipe) == expected
        # A model that is loaded has its rows from its files; letters do for their shape.
        assert parts._answer_tokens(tokenizer, truth.select([]), recipe) == [1, 2]


def test_a_template_may_name_the_passage(make) -> None:
    row = {"question": "is it", "passage": "It is."}
    truth = Task.from_rows([{**row, "answer": answer} for answer in (True, False)])
    template = "{passage}\n{question}\n{choices}\nAnswer:"
    named = make(labels=truth, prompt={"template": template}).head
    assert torch.equal(named.weight, make(labels=truth).head.weight)


def test_the_rows_of_the_lm_head_are_the_centre_of_the_prior(make, choice) -> None:
    head = make(labels=choice).head
    assert isinstance(head, GaussianHead) and head.prior == "pretrained"
    assert torch.equal(head.prior_mean, head.weight)
    assert bool((head.prior_mean != 0).all())
    zero = make(labels=choice, prior="zero").head
    assert not zero.prior_mean.any() and not zero.weight.any()


def test_absent_choices_have_no_probability_and_no_influence(make, choice) -> None:
    model = move(make(labels=choice))
    prediction = model.predict(choice)
    counts = torch.tensor([len(example.choices) for example in choice])
    absent = torch.arange(4) >= counts[:, None]
    assert set(counts.tolist()) == {2, 3, 4}
    assert bool((prediction.probs[absent] == 0).all())
    assert bool((prediction.probs[~absent] > 0).all())
    torch.testing.assert_close(prediction.probs.sum(1), torch.ones(len(choice)))
    for name in ("entropy", "aleatoric", "epistemic"):
        assert bool(torch.isfinite(getattr(prediction, name)).all())
    assert bool((prediction.entropy <= counts.log() + 1e-6).all())
    assert bool((prediction.epistemic > 0).all())
    # What the head says about letters that do not exist changes nothing.
    two = [i for i, count in enumerate(counts.tolist()) if count == 2]
    before = model.predict(choice.select(two)).probs
    with torch.no_grad():
        model.head.weight[2:] += 5
    torch.testing.assert_close(model.predict(choice.select(two)).probs, before, rtol=0, atol=1e-6)
    assert set(prediction.labels) <= set("ABCD")


@pytest.mark.parametrize("method", ["polar_vbll", "mle"])
def test_a_question_is_answered_alike_among_others_with_more_choices(make, choice, method) -> None:
    model = move(make(method, labels=choice))
    together = model.predict(choice, batch_size=16)
    for i in range(6):
        alone = model.predict(choice.select([i]))
        torch.testing.assert_close(together.probs[i], alone.probs[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.epistemic[i], alone.epistemic[0], rtol=0, atol=1e-5)


def test_rows_with_choices_are_read_without_an_answer(make, choice) -> None:
    model = move(make(labels=choice))
    rows = [{"question": e.question, "choices": list(e.choices)} for e in choice]
    torch.testing.assert_close(model.predict(rows).probs, model.predict(choice).probs)


def test_an_encoder_starts_from_zero_and_masks_too(make, choice, bert_base) -> None:
    model = make(labels=choice, base=str(bert_base), layers="all")
    assert model.head.prior == "zero"
    # Its words are not in this vocabulary's order, so equal logits are all there is to begin with.
    probs = model.predict(choice).probs
    counts = torch.tensor([len(example.choices) for example in choice])
    assert bool((probs[torch.arange(4) >= counts[:, None]] == 0).all())


def test_pretrained_rows_need_answer_letters(make, choice, bert_base) -> None:
    for labels, base in ((None, {}), (choice, {"base": str(bert_base), "layers": "all"})):
        with pytest.raises(ConfigError, match=r"head.prior=pretrained needs a decoder and a mult"):
            make(labels=labels, prior="pretrained", **base)


def test_a_linear_head_takes_the_rows_of_the_lm_head_too(make, choice) -> None:
    gaussian, linear = make(labels=choice).head, make("mle", labels=choice).head
    assert isinstance(linear, LinearHead)
    assert torch.equal(linear.weight, gaussian.weight)
