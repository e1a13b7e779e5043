"""The prefix cache: what is put in comes back bit by bit, from memory or from its file."""

from __future__ import annotations

import gc
import tempfile

import pytest
import torch

from bayestune.backbone import PrefixCache
from bayestune.errors import StoreError

WIDTH = 8


def states(tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * tokens + seed)
    return torch.randn(tokens, WIDTH, generator=generator).to(dtype)


def gigabytes(tokens: int, dtype: torch.dtype = torch.float32) -> float:
    return tokens * WIDTH * dtype.itemsize / 1e9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_memory_first_then_the_file_then_nothing(dtype, tmp_path):
    cache = PrefixCache(
        "identity", max_gb=gigabytes(8, dtype), max_disk_gb=gigabytes(9, dtype), folder=tmp_path
    )
    kept = {length: states(length, dtype) for length in (3, 5, 4, 2, 3, 7, 1)}
    for length, value in kept.items():
        cache.put(cache.key(range(length)), value)
    places = {length: cache.key(range(length)) in cache for length in kept}
    # 3 and 5 fill the memory, 4 and 2 go to the file, 7 fits in neither, 1 fits in the file again
    assert places == {3: True, 5: True, 4: True, 2: True, 7: False, 1: True}
    assert (len(cache), cache.refused) == (5, 1)
    size = WIDTH * dtype.itemsize
    assert (cache.memory_bytes, cache.disk_bytes) == (8 * size, 7 * size)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 7 * size
    for length in (5, 1, 4, 3, 2):
        back = cache.get(cache.key(range(length)))
        assert back is not None and back.dtype == dtype
        assert torch.equal(back.view(torch.uint8), kept[length].view(torch.uint8))
    assert cache.get(cache.key(range(7))) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_states_that_were_changed_in_the_file_are_not_given_back(damage, tmp_path, caplog):
    cache = PrefixCache("identity", max_gb=0.0, folder=tmp_path)
    for key in (b"a", b"b"):
        cache.put(key, states(4, seed=key[0]))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        spoilt = content[:-1] + bytes([content[-1] ^ 1])
        file.write_bytes(spoilt if damage == "flip" else content[:-9])
    assert cache.get(b"b") is None and b"b" not in cache
    assert "was changed by others; states are computed anew" in caplog.text
    kept = cache.get(b"a")
    assert (kept is None) == (damage == "remove")
    if kept is not None:
        assert torch.equal(kept, states(4, seed=ord("a")))


@pytest.mark.parametrize("max_gb", [1.0, 0.0])
def test_odd_numbers_come_back_bit_by_bit(max_gb, tmp_path):
    odd = torch.tensor([[0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, 3e38, 1.0]])
    cache = PrefixCache("identity", max_gb=max_gb, folder=tmp_path)
    cache.put(b"a", odd)
    back = cache.get(b"a")
    assert back is not None and torch.equal(back.view(torch.int32), odd.view(torch.int32))


def test_a_key_is_of_the_model_and_all_tokens():
    cache, other = PrefixCache("model|3|float32"), PrefixCache("model|3|bfloat16")
    keys = [
        cache.key([1, 2, 3]),
        other.key([1, 2, 3]),
        cache.key([1, 2]),
        cache.key([1, 3, 2]),
        cache.key([1, 2, 3, 0]),
        cache.key([1, 2, 3], [0, 0, 1]),
        cache.key([1, 2, 3], [0, 1, 1]),
        cache.key([2**40]),
        cache.key([]),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key([1, 2, 3]) == PrefixCache("model|3|float32").key((1, 2, 3))


def test_what_is_kept_is_a_copy_and_the_first_one():
    cache = PrefixCache("identity")
    value = states(3)
    cache.put(b"a", value)
    expected = value.clone()
    value.zero_()
    cache.put(b"a", value)
    back = cache.get(b"a")
    assert back is not None and torch.equal(back, expected)
    assert (len(cache), cache.refused) == (1, 0)


def test_a_slice_and_a_gradient_are_left_behind(tmp_path):
    cache = PrefixCache("identity", max_gb=0.0, folder=tmp_path)
    wide = torch.randn(3, 2 * WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cache.put(b"a", wide[:, ::2])
    back = cache.get(b"a")
    assert back is not None and torch.equal(back, wide[:, ::2].detach())
    assert not back.requires_grad


def test_without_room_nothing_is_kept_and_no_file_made(tmp_path):
    cache = PrefixCache("identity", max_gb=0.0, max_disk_gb=0.0, folder=tmp_path)
    cache.put(b"a", states(3))
    assert (len(cache), cache.refused, list(tmp_path.iterdir())) == (0, 1, [])
    assert cache.get(b"a") is None


def test_the_file_goes_with_the_cache_but_states_in_use_stay(tmp_path):
    cache = PrefixCache("identity", max_gb=0.0, folder=tmp_path)
    cache.put(b"a", states(3))
    back = cache.get(b"a")
    assert len(list(tmp_path.iterdir())) == 1
    del cache
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert back is not None and torch.equal(back, states(3))


class Full:
    """A file on a disk with room for ten more bytes."""

    name = "full"

    def __init__(self) -> None:
        self.room = 10

    def seek(self, place: int) -> int:
        return place

    def write(self, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written, self.room = min(self.room, len(data)), 0
        return written

    def close(self) -> None: ...


def test_a_full_disk_is_one_clear_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: Full())
    cache = PrefixCache("identity", max_gb=0.0, folder=tmp_path)
    with pytest.raises(StoreError) as error:
        cache.put(b"a", states(3))
    assert f"prefix cache could not be written to {tmp_path}: No space left" in str(error.value)
    assert "cache.max_disk_gb" in str(error.value)
    assert b"a" not in cache and cache.get(b"a") is None


def test_a_folder_that_is_not_there(tmp_path):
    cache = PrefixCache("identity", max_gb=0.0, folder=tmp_path / "none")
    with pytest.raises(StoreError, match="No such file or directory"):
        cache.put(b"a", states(3))
