"""The reader: the same features in the order of the rows, whether states are kept or not."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from backbone_zoo import backbone, encoded, one_by_one, texts
from torch.testing import assert_close

from bayestune.backbone import Backbone, PrefixCache, Reader
from bayestune.errors import ConfigError, NumericsError

LENGTHS = (9, 5, 12, 1, 7, 12, 3, 5)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def llama() -> Backbone:
    return backbone("llama")


class Count:
    """Counts the passes of a backbone by kind."""

    def __init__(self, model: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = {"forward": 0, "enter": 0, "resume": 0}
        for name in self.calls:
            monkeypatch.setattr(model, name, self._counted(name, getattr(model, name)))

    def _counted(self, name, run):
        def counted(*args, **kwargs):
            self.calls[name] += 1
            return run(*args, **kwargs)

        return counted


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_features_are_in_the_order_of_the_rows(llama, size, side):
    ids = texts(LENGTHS)
    found = Reader(llama, 0, padding_side=side).features(encoded(ids), size)
    with torch.no_grad():
        assert_close(found, one_by_one(llama, ids), **CLOSE)
    assert found.device.type == "cpu" and found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("budget", [(1.0, 0.0), (0.0, 1.0), (2e-6, 1.0)])
def test_kept_states_give_the_same_features(llama, budget, side, tmp_path, monkeypatch):
    cache = PrefixCache("x", max_gb=budget[0], max_disk_gb=budget[1], folder=tmp_path)
    reader = Reader(llama, 0, cache, padding_side=side)
    data = encoded(texts(LENGTHS))
    plain = Reader(llama, 0, padding_side=side).features(data, 3)
    reader.fill(data, 4)
    assert len(cache) == len(LENGTHS)
    count = Count(llama, monkeypatch)
    assert_close(reader.features(data, 3), plain, **CLOSE)
    assert count.calls == {"forward": 0, "enter": 0, "resume": 3}


def test_a_batch_with_a_missing_text_is_computed_whole(llama, monkeypatch):
    size = 32 * 4 / 1e9
    cache = PrefixCache("x", max_gb=20 * size, max_disk_gb=0.0)  # room for 20 tokens
    reader = Reader(llama, 0, cache)
    data = encoded(texts(LENGTHS))
    reader.fill(data)
    assert 0 < len(cache) < len(LENGTHS)
    assert cache.refused == len(LENGTHS) - len(cache)
    count = Count(llama, monkeypatch)
    found = reader.features(data, 3)
    assert count.calls["forward"] > 0 and count.calls["enter"] == 0
    assert_close(found, Reader(llama, 0).features(data, 3), **CLOSE)


def test_a_text_is_computed_once(llama, monkeypatch):
    ids = texts(LENGTHS)
    cache = PrefixCache("x")
    reader = Reader(llama, 0, cache)
    count = Count(llama, monkeypatch)
    reader.fill(encoded([*ids, *ids]), 4)
    assert (len(cache), count.calls["enter"]) == (len(ids), 2)
    reader.fill(encoded(ids))
    reader.fill(encoded([*ids, [7, 7, 7]]))
    assert (len(cache), count.calls["enter"]) == (len(ids) + 1, 3)


def test_without_a_cache_there_is_nothing_to_fill(llama, monkeypatch):
    count = Count(llama, monkeypatch)
    Reader(llama, 0).fill(encoded(texts(LENGTHS)))
    assert not any(count.calls.values())


def test_kept_states_stay_true_while_the_adapter_is_trained():
    model = backbone("llama", moved=False)
    data = encoded(texts(LENGTHS))
    reader = Reader(model, 0, PrefixCache("x"))
    reader.fill(data)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = reader.features(data)
    for _ in range(3):
        model.train()
        reader.batch(data, [0, 3, 2])[:, ::2].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.training
    trained = reader.features(data)
    assert model.training  # evaluation gives the mode back
    assert not torch.allclose(trained, start, atol=1e-3)
    assert_close(trained, Reader(model, 0).features(data), **CLOSE)


def test_gradients_through_kept_states_are_those_of_whole_passes(llama):
    data = encoded(texts(LENGTHS))
    cached = Reader(llama, 0, PrefixCache("x"))
    cached.fill(data)
    found = []
    for reader in (cached, Reader(llama, 0)):
        reader.batch(data, [4, 1, 2])[:, ::2].square().sum().backward()
        found.append({n: p.grad for n, p in llama.named_parameters() if p.grad is not None})
        llama.zero_grad(set_to_none=True)
    assert found[0] and found[0].keys() == found[1].keys()
    assert max(float(gradient.abs().max()) for gradient in found[0].values()) > 0.1
    for name, gradient in found[0].items():
        assert_close(gradient, found[1][name], **CLOSE)


@pytest.mark.parametrize("cached", [False, True])
def test_pairs_keep_their_token_types(cached):
    model = backbone("bert")
    ids = texts(LENGTHS)
    types = [[0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2) for row in ids]
    reader = Reader(model, 0, PrefixCache("x") if cached else None)
    data = encoded(ids, types)
    reader.fill(data)
    found = reader.features(data, 3)
    with torch.no_grad():
        alone = [
            model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64), None, t)
            for row, t in zip(ids, (torch.tensor([t]) for t in types), strict=True)
        ]
    assert_close(found, torch.cat(alone), **CLOSE)
    # The same tokens without types are other texts, for the model and for the cache.
    assert not torch.allclose(reader.features(encoded(ids), 3), found, atol=1e-2)


def test_encoders_count_their_own_positions_and_pad_on_the_right():
    model = backbone("roberta")
    inputs = Reader(model, 1).tensors(encoded(texts((4, 2))), [1, 0])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert inputs["input_ids"][0, 2:].tolist() == [1, 1]
    with pytest.raises(ConfigError, match="pad it on the right"):
        Reader(model, 1, padding_side="left")
    with pytest.raises(ConfigError, match="padding side"):
        Reader(backbone("llama"), 0, padding_side="both").features(encoded(texts((4, 2))))


def test_no_rows_give_no_features(llama):
    assert Reader(llama, 0).features(encoded([])).shape[0] == 0


def test_progress_counts_rows(llama):
    seen = []

    @contextmanager
    def watch(label, total):
        yield lambda count=1, note="": seen.append((label, total, count))

    reader = Reader(llama, 0, PrefixCache("x"))
    data = encoded([*texts(LENGTHS), texts(LENGTHS)[0]])
    reader.fill(data, 4, progress=watch)
    reader.features(data, 4, progress=watch, label="reading")
    assert [s for s in seen if s[0] == "frozen layers"] == [("frozen layers", 8, 4)] * 2
    read = [s for s in seen if s[0] == "reading"]
    assert [s[1] for s in read] == [9] * 3 and sum(s[2] for s in read) == 9


@pytest.mark.parametrize("cached", [False, True])
def test_a_feature_that_is_no_number_stops_with_its_rows(cached):
    model = backbone("llama", moved=False)
    data = encoded(texts(LENGTHS))
    reader = Reader(model, 0, PrefixCache("x") if cached else None)
    reader.fill(data)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "polar_theta" in name:
                parameter.fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"Features of rows \[6, 1\] are NaN"):
        reader.batch(data, [6, 1])
