"""The papers' prompts, letter by letter, and the tokens that answer them."""

from __future__ import annotations

import pytest

from bayestune.data import Example, PromptConfig, answers, bare_token_ids, render
from bayestune.errors import ConfigError, DataError, ModelError

BLANK = Example(1, question="Ann saw Bea as _ ran.", choices=("Ann", "Bea"), label=0)
THREE = Example(2, question="Which is hot?", choices=("ice", "the sun.", "A pen"), label=1)
TRUTH = Example(3, question="is it so", choices=("no", "yes"), passage="p" * 2000, label=1)

LABEL = "Return the label of the correct answer for the question below.\n\nQuestion: "
SELECT = "Select one of the choices that answers the following question: "
LETTER = "Answer the multiple choice question below. Output the letter of your choice only.\n"
WORDS = "Read the passage below and answer the question with the words 'true' or 'false'.\n"
FILL = (
    "For the sentence given below, select the answer that best fills in the blank (_) from the "
    "given choices.\n"
)
SWAPPED = "ice) A\nthe sun.) B\nA pen) C\nAnswer:"
LISTED = "A) ice\nB) the sun.\nC) A pen"


@pytest.mark.parametrize(
    ("style", "dataset", "example", "expected"),
    [
        ("blob", None, BLANK, f"{LABEL}{BLANK.question}\nChoices:\nA) Ann\nB) Bea\nAnswer:"),
        ("blob", None, THREE, f"{LABEL}Which is hot?\nChoices:\n{SWAPPED}"),
        ("blob", "arc", THREE, f"{LABEL}Which is hot?\nChoices:\n{SWAPPED}"),
        ("blob", "openbookqa", THREE, f"{LABEL}Which is hot?\nChioces:\n{SWAPPED}"),
        ("blob", "mmlu", THREE, f"{LABEL}Which is hot?\nChoices:\n{LISTED}\nAnswer:"),
        (
            "blob",
            None,
            TRUTH,
            f"{WORDS}\nPassage: {'p' * 1024}\nQuestion: is it so\nAnswer (true or false):",
        ),
        (
            "laplace_lora",
            None,
            BLANK,
            f"{SELECT}{BLANK.question} Choices: A. Ann. B Bea. Answer:",
        ),
        (
            "laplace_lora",
            "openbookqa",
            THREE,
            f"{SELECT}Which is hot? Choices: A. Ice. B. The sun. C. A pen. Answer:",
        ),
        (
            "laplace_lora",
            None,
            TRUTH,
            f"Answer the question with only True or False: is it so Context: {'p' * 2000}",
        ),
        ("scalabl", None, BLANK, f"{FILL}{BLANK.question}\nChoices:\nA) Ann\nB) Bea\nAnswer:"),
        ("scalabl", "mmlu", THREE, f"{LETTER}Which is hot?\nChoices:\n{LISTED}\nAnswer:"),
        (
            "scalabl",
            None,
            TRUTH,
            f"{WORDS}Passage: {'p' * 2000}\nQuestion: is it so?\nAnswer:",
        ),
    ],
)
def test_each_style(style, dataset, example, expected) -> None:
    assert render(example, PromptConfig(style=style, dataset=dataset), decoder=True) == expected


def test_a_data_set_does_not_change_how_blanks_and_passages_are_asked() -> None:
    for example in (BLANK, TRUTH):
        plain = render(example, PromptConfig(style="blob"), decoder=True)
        assert render(example, PromptConfig(style="blob", dataset="mmlu"), decoder=True) == plain


def test_in_a_chat_the_slot_is_the_templates(bos_decoder) -> None:
    config = PromptConfig(style="scalabl", chat=True)
    prompt = render(THREE, config, decoder=True, tokenizer=bos_decoder)
    assert prompt == f"<s>[user]{LETTER}Which is hot?\nChoices:\n{LISTED}\n[assistant]"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example(1, text="a"), "is no question with choices"),
        (Example(1, question="q", choices=("yes", "no"), passage="p"), "in this order"),
        (Example(1, question="q", choices=("a", "b", "c"), passage="p"), "for no and yes only"),
    ],
)
def test_what_no_paper_asks(example, message) -> None:
    with pytest.raises(DataError, match=message):
        render(example, PromptConfig(style="scalabl"), decoder=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "blobb"}, "Unknown style 'blobb'. Did you mean 'blob'"),
        ({"style": "blob", "dataset": "ark"}, "Unknown dataset 'ark'. Did you mean 'arc'"),
        ({"style": "blob", "template": "{question}"}, "give one of them"),
    ],
)
def test_settings_are_checked(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptConfig(**options)


def test_the_words_that_answer() -> None:
    assert answers(THREE, "blob", "ABC") == ("A", "B", "C")
    assert answers(TRUTH, "blob", "AB") == answers(TRUTH, "laplace_lora", "AB") == ("False", "True")
    assert answers(TRUTH, "scalabl", "AB") == ("false", "true")


def test_bare_tokens_have_no_space_before_them(plain_decoder) -> None:
    vocabulary = plain_decoder.get_vocab()
    assert bare_token_ids(plain_decoder, "ABC") == [vocabulary[a] for a in "ABC"]
    assert "ĠA" in vocabulary  # which ours would take
    with pytest.raises(ModelError, match="two end in the same token"):
        bare_token_ids(plain_decoder, ["xq", "yq"])
