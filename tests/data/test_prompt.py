from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayestune.data import Example, PromptConfig, render
from bayestune.errors import ConfigError, DataError

PLAIN = PromptConfig()
TEXT = Example(1, text="a film")
PAIR = Example(2, text="first", text2="second")
CHOICE = Example(3, question="Which?", choices=("x", "y", "z"))
PASSAGE = Example(4, question="Which?", choices=("x", "y"), passage="Long ago.")


@pytest.mark.parametrize(
    ("example", "decoder", "encoder"),
    [
        (TEXT, "a film\nLabel:", "a film"),
        (PAIR, "first\nsecond\nLabel:", ("first", "second")),
        (CHOICE, "Which?\nA) x\nB) y\nC) z\nAnswer:", "Which?\nA) x\nB) y\nC) z\nAnswer:"),
        (PASSAGE, "Long ago.\nWhich?\nA) x\nB) y\nAnswer:", None),
    ],
)
def test_default_templates(example, decoder, encoder):
    assert render(example, PLAIN, decoder=True) == decoder
    if encoder is not None:
        assert render(example, PLAIN, decoder=False) == encoder


def test_own_template():
    config = PromptConfig(template="{{{text}}} | {text2} Label:")
    assert render(PAIR, config, decoder=True) == "{first} | second Label:"
    assert render(PAIR, config, decoder=False) == "{first} | second Label:"
    config = PromptConfig(template="{choices}\n{question}\n{passage}")
    assert render(PASSAGE, config, decoder=True) == "A) x\nB) y\nWhich?\nLong ago."


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="{}abtex0!:. %s"))
def test_braces_in_the_data_are_text(text):
    prompt = render(Example(1, text=text), PLAIN, decoder=True)
    assert prompt == text + "\nLabel:"


def test_no_space_at_the_end():
    ending = PromptConfig(template="Text: {text}")
    assert render(Example(1, text="a \t"), ending, decoder=True) == "Text: a"
    assert render(Example(1, text="a "), PLAIN, decoder=True) == "a \nLabel:"
    for template in ("{text} Label: ", "{text}\t"):
        with pytest.raises(ConfigError, match="ends in a space"):
            PromptConfig(template=template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{txt}", r"unknown field \{txt\}. Did you mean 'text'\?"),
        ("{label}", "unknown field {label}"),
        ("{}", "unknown field {}"),
        ("{0}", "unknown field {0}"),
        ("{text.__class__}", "unknown field"),
        ("{text[0]}", "unknown field"),
        ("{text!r}", "formats {text}"),
        ("{text:>10}", "formats {text}"),
        ("no field", "names no field"),
        ("", "names no field"),
        ("{text", "not well formed"),
        ("text}", "not well formed"),
    ],
)
def test_bad_templates(template, message):
    with pytest.raises(ConfigError, match=message):
        PromptConfig(template=template)


@pytest.mark.parametrize("field", ["text2", "question", "choices", "passage"])
def test_template_of_a_field_that_is_not_there(field):
    config = PromptConfig(template=f"{{text}} {{{field}}}")
    with pytest.raises(DataError, match=f"names {{{field}}}, but example 1 has no {field}"):
        render(TEXT, config, decoder=True)


@pytest.mark.parametrize("options", [{"max_length": 0}, {"max_length": 1.5}, {"max_length": True}])
def test_max_length_is_checked(options):
    with pytest.raises(ConfigError, match="max_length is"):
        PromptConfig(**options)


def test_chat_ends_in_the_answer_slot(bos_decoder):
    prompt = render(TEXT, PromptConfig(chat=True), decoder=True, tokenizer=bos_decoder)
    assert prompt == "<s>[user]a film\nLabel:\n[assistant]"
    config = PromptConfig(chat=True, system="Be brief.", template="{text}?")
    prompt = render(TEXT, config, decoder=True, tokenizer=bos_decoder)
    assert prompt == "<s>[system]Be brief.\n[user]a film?\n[assistant]"


def test_chat_is_checked(plain_decoder, bos_decoder):
    for tokenizer in (None, plain_decoder):
        with pytest.raises(ConfigError, match="no chat template"):
            render(TEXT, PromptConfig(chat=True), decoder=True, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"refuses the messages \(no system\). Drop"):
        config = PromptConfig(chat=True, system="refused")
        render(TEXT, config, decoder=True, tokenizer=bos_decoder)
    with pytest.raises(ConfigError, match="needs chat: true"):
        PromptConfig(system="Be brief.")
