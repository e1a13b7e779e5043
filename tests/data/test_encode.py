from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bayestune.data import Example, PromptConfig, encode, label_token_ids, render
from bayestune.data.encode import keep_end
from bayestune.errors import ConfigError, DataError, ModelError

LONG = "the quick brown fox jumps over the lazy dog " * 5 + "Answer:"
PROMPTS = ["a good film\nLabel:", LONG, "x"]


def body(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["plain_decoder", "bos_decoder", "eos_decoder"])
def test_decoder_keeps_the_end_and_the_specials(name, request):
    tokenizer = request.getfixturevalue(name)
    head = [] if name == "plain_decoder" else [1]
    tail = [2] if name == "eos_decoder" else []
    whole = encode(tokenizer, PROMPTS, 512, decoder=True)
    assert whole.ids == [head + body(tokenizer, p) + tail for p in PROMPTS]
    assert whole.truncated == 0
    assert whole.lengths == [len(row) for row in whole.ids]
    cut = encode(tokenizer, PROMPTS, 12, decoder=True)
    keep = 12 - len(head) - len(tail)
    assert cut.ids[1] == head + body(tokenizer, LONG)[-keep:] + tail
    assert [cut.ids[0], cut.ids[2]] == [whole.ids[0], whole.ids[2]]
    assert cut.truncated == 1
    assert cut.token_type_ids is None


def test_exact_length_is_not_truncated(bos_decoder):
    length = len(encode(bos_decoder, [LONG], 512, decoder=True).ids[0])
    assert encode(bos_decoder, [LONG], length, decoder=True).truncated == 0
    assert encode(bos_decoder, [LONG], length - 1, decoder=True).truncated == 1


def test_chat_prompt_gets_no_second_bos(bos_decoder):
    config = PromptConfig(chat=True)
    chat = render(Example(1, text=LONG), config, decoder=True, tokenizer=bos_decoder)
    ids = encode(bos_decoder, ["no chat", chat], 512, decoder=True).ids
    assert [row.count(1) for row in ids] == [1, 1]
    assert ids[1] == [1, *body(bos_decoder, chat.removeprefix("<s>"))]
    cut = encode(bos_decoder, [chat], 8, decoder=True).ids[0]
    assert cut == [1, *ids[1][-7:]]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(), max_size=30), st.integers(0, 2), st.integers(1, 20))
def test_keep_end(rest, head, room):
    row = [*["h"] * head, *rest]
    kept = keep_end(row, head + room, head)  # pyright: ignore[reportArgumentType]
    assert kept == [*["h"] * head, *rest[-room:]]


def test_encoder_truncates_as_its_tokenizer_does(encoder):
    texts = ["a b c", "a b c d e f g h i j", "x"]
    encoded = encode(encoder, texts, 6, decoder=False)
    expected = encoder(texts, truncation=True, max_length=6)["input_ids"]
    assert encoded.ids == expected
    assert encoded.truncated == 1
    assert {row[0] for row in encoded.ids} == {encoder.cls_token_id}
    assert {row[-1] for row in encoded.ids} == {encoder.sep_token_id}
    assert encoded.token_type_ids is None


def test_encoder_pairs(encoder):
    pairs = [("a b", "c d e f g h"), ("a b c d e f g", "h"), ("a", "b")]
    encoded = encode(encoder, pairs, 8, decoder=False)
    first, second = zip(*pairs, strict=True)
    expected = encoder(
        list(first), list(second), truncation="longest_first", max_length=8, padding=False
    )
    assert encoded.ids == expected["input_ids"]
    assert encoded.token_type_ids == expected["token_type_ids"]
    assert encoded.truncated == 2
    assert encoded.token_type_ids[2] == [0, 0, 0, 1, 1]
    assert [len(row) for row in encoded.token_type_ids] == encoded.lengths


def test_encode_is_checked(plain_decoder, bos_decoder, encoder):
    with pytest.raises(ConfigError, match="A decoder reads one text"):
        encode(plain_decoder, [("a", "b")], 512, decoder=True)
    with pytest.raises(ConfigError, match="1 of 2 prompts are pairs"):
        encode(encoder, ["a", ("a", "b")], 64, decoder=False)
    with pytest.raises(ConfigError, match="max_length is 1, but the tokenizer alone adds 1"):
        encode(bos_decoder, ["a"], 1, decoder=True)
    with pytest.raises(ConfigError, match="adds 3 special"):
        encode(encoder, [("a", "b")], 3, decoder=False)
    longest = encoder.model_max_length
    with pytest.raises(ConfigError, match=f"reads at most {longest} tokens"):
        encode(encoder, ["a"], longest + 1, decoder=False)
    with pytest.raises(DataError, match="Prompt 1 has no tokens"):
        encode(plain_decoder, ["a", ""], 512, decoder=True)
    assert encode(bos_decoder, [""], 512, decoder=True).ids == [[1]]
    assert encode(plain_decoder, [], 512, decoder=True).ids == []


def test_encoding_does_not_depend_on_the_batch(encoder, bos_decoder):
    for tokenizer, decoder in ((encoder, False), (bos_decoder, True)):
        together = encode(tokenizer, PROMPTS, 10, decoder=decoder).ids
        alone = [encode(tokenizer, [p], 10, decoder=decoder).ids[0] for p in PROMPTS]
        assert together == alone


@pytest.mark.parametrize("name", ["plain_decoder", "bos_decoder", "eos_decoder"])
def test_label_tokens_follow_a_space(name, request):
    tokenizer = request.getfixturevalue(name)
    ids = label_token_ids(tokenizer, "what is it?\nAnswer:", ["A", "B", "C", "D"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["ĠA", "ĠB", "ĠC", "ĠD"]


def test_label_tokens_after_white_space_stand_alone(bos_decoder):
    ids = label_token_ids(bos_decoder, "<s>[user]q\n[assistant]\n", ["A", "B"])
    assert bos_decoder.convert_ids_to_tokens(ids) == ["A", "B"]


def merging_tokenizer(merges):
    """A BPE over whole texts, where merges can cross the border between prompt and label."""
    vocab = {c: i for i, c in enumerate(["<unk>", *"ABCDanswer:", "Ġ"])}
    for a, b in merges:
        vocab[a + b] = len(vocab)
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_label_tokens_are_not_fooled_by_merges():
    spaced = [("Ġ", "A"), ("Ġ", "B")]
    crossing = [("Ġ", "A"), (":", "ĠA"), ("Ġ", "B"), (":", "ĠB")]
    tokenizer = merging_tokenizer(spaced)
    ids = label_token_ids(tokenizer, "answer:", ["A", "B"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["ĠA", "ĠB"]
    # ":ĠA" swallows the colon, so only the label without a space is one token after the prompt.
    tokenizer = merging_tokenizer(crossing)
    ids = label_token_ids(tokenizer, "answer:", ["A", "B"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["A", "B"]


def test_label_tokens_that_retokenise_the_prompt():
    """The prompt "an" is one token and "anA" is "a" and "nA": one more, but not a label."""
    tokenizer = merging_tokenizer([("n", "A"), ("n", "B"), ("a", "n")])
    assert tokenizer.tokenize("anA") == ["a", "nA"]
    with pytest.raises(ModelError, match=r"' A' gives \['Ġ', 'A'\]; 'A' gives \['a', 'nA'\]"):
        label_token_ids(tokenizer, "an", ["A", "B"])


def test_label_tokens_that_do_not_exist(plain_decoder):
    with pytest.raises(ModelError, match=r"not single tokens .*' zqxj' gives"):
        label_token_ids(plain_decoder, "Answer:", ["A", "zqxj"])
    unknown = merging_tokenizer([("Ġ", "A")])
    with pytest.raises(ModelError, match="two labels share a token"):
        label_token_ids(unknown, "answer:", ["X", "Y"])
