"""Bytes, texts and JSON values that nobody expects."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

#: Zero-length, emoji with joiners, right-to-left with controls, combining marks, NUL, line
#: separators, byte-order mark, markup, templates, special tokens, noncharacters.
TEXTS = (
    "",
    " ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 where is my parcel?",
    "שלום \u202eabc\u202c مرحبا",
    "e\u0301\u0301\u0301\u0301 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A",
    "nul \x00 inside",
    "line\u2028separator\u2029paragraph\x85next",
    "\ufeffbom",
    "tab\tcr\rlf\ncrlf\r\n",
    "<script>alert(1)</script><s></s><pad>",
    "{text} {{ 7*7 }} {% for i in x %} %s %n $HOME",
    '"quoted", and ""twice""',
    "=1+1",
    "../../etc/passwd",
    "\U0010ffff\ufffe",
    "login password",
)
#: One in so many texts is a megabyte.
_RARE = 150
_LONG = ("a", "parcel ", "👩‍👩‍👧 ", "\x00", "é")
ODD = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**62,
    -(2**70),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x00",
    "../x",
    "/etc/passwd",
    "\ud800",
    [],
    [1, "a", None],
    {},
    {"a": {"b": []}},
    [[[[]]]],
)


def text(rng: random.Random) -> str:
    """Return a text: odd, plain, of random code points or, rarely, of a megabyte."""
    if rng.randrange(_RARE) == 0:
        unit = rng.choice(_LONG)
        return unit * (2**20 // len(unit.encode()))
    kind = rng.randrange(4)
    if kind == 0:
        return "".join(chr(_scalar(rng)) for _ in range(rng.randint(1, 20)))
    words = [rng.choice(TEXTS) for _ in range(1 if kind < 3 else 3)]
    return " ".join(words)


def _scalar(rng: random.Random) -> int:
    """Return a code point that is no half of a surrogate pair."""
    code = rng.randrange(rng.choice((0x80, 0x800, 0x10000, 0x110000)))
    return code if not 0xD800 <= code < 0xE000 else 0xFFFD


def spoil(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with one to three damages: flips, cuts, insertions, repetitions, exchanges."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_DAMAGES)(rng, data)
    return data


def flip(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with one bit flipped."""
    if not data:
        return b"\x00"
    at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def cut(rng: random.Random, data: bytes) -> bytes:
    """Return the beginning of bytes."""
    return data[: rng.randrange(len(data) + 1)]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with some that mean something to a parser put in between."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_INSERTS) + data[at:]


def exchange(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with a part taken out, doubled or moved."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    part = data[a:b]
    return rng.choice((data[:a] + data[b:], data + part, part + data, data[:b] + part + data[b:]))


def noise(rng: random.Random, data: bytes) -> bytes:
    """Return random bytes of the same length."""
    return rng.randbytes(len(data))


_INSERTS = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\r\n",
        b"\n\n",
        b'"',
        b"\\",
        b",",
        b"{",
        b"]",
    ),
    *(b"\\ud800", b"\\u0000", b"NaN", b"1e999", b"-", b"9" * 5000, b"[" * 3000, b"\x1a", b"\xc3("),
    *(
        b"&a ",
        b"*a",
        b"!!python/name:os.system ",
        b"<<: ",
        b"%",
        b"- ",
        b": ",
        b"\t",
        b"\xe2\x80\xa8",
    ),
)
_DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip,
    flip,
    cut,
    insert,
    insert,
    exchange,
)


def value(rng: random.Random) -> Any:
    """Return a JSON value of any kind."""
    return rng.choice(ODD) if rng.random() < 0.8 else text(rng)


def respell(rng: random.Random, data: Any, value: Callable[[random.Random], Any] = value) -> Any:
    """Return a copy of nested JSON with one place anywhere in it replaced, removed or added."""
    data = json.loads(json.dumps(data))
    node, path = data, []
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.75):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return value(rng)
    parent, key = path[-1]
    kind = rng.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("x", "", "\x00", "__class__", "trust_remote_code"))] = value(rng)
    else:
        parent[key] = value(rng)
    return data


#: JSON texts that are small and cost a careless reader much.
BOMBS = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 5_000,
    b'{"format": ' + b"9" * 5_000 + b"}",
    b"\xef\xbb\xbf{}",
    '{"format": 1}'.encode("utf-16"),
    b'{"a": 1e400, "b": -Infinity, "c": NaN}',
    b'{"a": 1, "a": 2}',
    b'"' + b"\\ud800" * 100 + b'"',
    b"",
    b"\x00" * 64,
    b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
)
