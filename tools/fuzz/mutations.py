"""Changes of good files, each determined by a generator of random numbers."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10, 1000, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64,
    10**30, 0.5, -0.0, 1e-300, 1e300, 1e39, "", "x", "step", "float64", "int8", "é", "\x00", "a" * 300, "../../x", "/",
    [], [[]], {}, [-1], [0, 2**62], {"a": {}}, "NaN", "1e400", "-1", "99999999999999999999",
)  # fmt: skip
"""Values that stand where others are expected."""


def mutate_bytes(content: bytes, random_: random.Random) -> bytes:
    """The bytes ``content`` after one to four small accidents."""
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        random_.choice(_ACCIDENTS)(data, random_)
    return bytes(data)


def mutate_json(text: bytes, random_: random.Random) -> bytes:
    """A JSON text in which one to three values, keys or list items are others."""
    value = json.loads(text)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        _mutate_value(value, random_)
    if random_.random() < 0.02:
        depth = random_.choice((50, 500, 100_000))
        return b'{"schema_version":' + b"[" * depth + b"]" * depth + b"}"
    return json.dumps(value, ensure_ascii=random_.random() < 0.9).encode("utf-8", "surrogatepass")


def mutate_tensors(content: bytes, random_: random.Random) -> bytes:
    """A safetensors file in which bytes, values of the header, or numbers in arrays are others."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], bytearray(content[8 + size :])
    kind = random_.random()
    if kind < 0.3:
        return mutate_bytes(content, random_)
    if kind < 0.75:
        header = mutate_json(header, random_)
    else:
        for _ in range(random_.choice((1, 4, 64))):
            place = random_.randrange(0, max(1, len(data) - 8), 4)
            data[place : place + 4] = random_.choice(_WORDS)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(data)


_WORDS = (
    b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff\xff\x7f\x7f",
    b"\x01\x00\x00\x00",
)  # fmt: skip
"""Hostile words: NaN, infinity, -1, -0, the largest number, the smallest."""


def _flip(data: bytearray, random_: random.Random) -> None:
    if data:
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def _overwrite(data: bytearray, random_: random.Random) -> None:
    if data:
        place = random_.randrange(len(data))
        piece = random_.choice((b"\x00", b"\xff", b"\xff" * 8, b"\x00" * 64, *_WORDS, b'"', b"}", b"[" * 40))
        data[place : place + len(piece)] = piece


def _truncate(data: bytearray, random_: random.Random) -> None:
    del data[random_.randrange(len(data) + 1) :]


def _insert(data: bytearray, random_: random.Random) -> None:
    place = random_.randrange(len(data) + 1)
    data[place:place] = random_.randbytes(random_.choice((1, 8, 100)))


def _cut(data: bytearray, random_: random.Random) -> None:
    place = random_.randrange(len(data) + 1)
    del data[place : place + random_.choice((1, 4, 100))]


def _repeat(data: bytearray, random_: random.Random) -> None:
    place = random_.randrange(len(data) + 1)
    data[place:place] = data[place : place + random_.choice((4, 50, 1000))]


def _shorten_head(data: bytearray, random_: random.Random) -> None:
    """Accidents in the first bytes, where headers are."""
    if data:
        data[random_.randrange(min(len(data), 64))] = random_.randrange(256)


_ACCIDENTS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _overwrite, _truncate, _insert, _cut, _repeat, _shorten_head,
)  # fmt: skip


def _mutate_value(value: Any, random_: random.Random) -> None:
    """Change something inside ``value``, a list or an object, at any depth."""
    holder, key = value, None
    while isinstance(holder, (dict, list)) and holder:
        key = random_.choice(list(holder)) if isinstance(holder, dict) else random_.randrange(len(holder))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or random_.random() < 0.25:
            break
        holder = holder[key]
    if key is None:
        return
    action = random_.randrange(8)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif action == 1:
        holder[str(random_.choice(HOSTILE))] = copy.deepcopy(holder[key])
    elif action == 2 and isinstance(holder, list):
        random_.shuffle(holder)
    elif action == 3 and isinstance(holder[key], int):
        holder[key] += random_.choice((-1, 1, 8, 100, -100))
    else:
        holder[key] = copy.deepcopy(random_.choice(HOSTILE))  # the next change may be inside of it
