"""Seeded random damage to the bytes, the JSON, the places and the values of packed files."""

import json
import math
import re
import struct

import numpy as np
from bad_packed import META, MODEL, dump, join, split

from gsb_vit.runtime import schema

NASTY = [
    "NaN", "-Infinity", "1e999", "2.0", "2e0", "-0", "-1", "0", "1", "2", "01", "true", "false", "null", '""', '"x"',
    "[]", "{}", "[[]]", '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', "1" + "0" * 400, "9007199254740993",
    "65536", "1048577", "32768", "1e-400", "[1]", '{"a":1,"a":2}', "[" * 64 + "]" * 64, "[" * 62 + "]" * 62, "\x00",
    "é", "0.5", "1.0",
]  # fmt: skip
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|[\[\]{},:]|\w+')


def damaged(rng, data):
    """One to three random changes of a file's bytes, JSON, places or values."""
    for _ in range(rng.integers(1, 4) if rng.random() < 0.3 else 1):
        data = _DAMAGES[rng.integers(len(_DAMAGES))](rng, data)
    return data


def _bytes(rng, text, ascii_only=False):
    """Flip, insert, delete or repeat some bytes."""
    text = bytearray(text)
    if not text:
        return bytes(text)
    at, length = int(rng.integers(len(text))), int(rng.integers(1, 6))
    kind = rng.integers(5)
    if kind == 0:
        text[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        text[at] = int(rng.choice(np.frombuffer(b'0123456789[]{}",:\\ \x00\xffeE-.tfn', np.uint8)))
    elif kind == 2:
        text[at:at] = bytes(rng.integers(0, 128 if ascii_only else 256, length).astype(np.uint8))
    elif kind == 3:
        del text[at : at + length]
    else:
        text[at:at] = text[at : at + int(rng.integers(1, 80))]
    return bytes(text)


def _damage_header(rng, data):
    header, payload = split(data)
    return join(_bytes(rng, header), payload)


def _damage_anywhere(rng, data):
    return _bytes(rng, data)


def _damage_tokens(rng, data):
    """Replace, repeat, remove or swap a token of the header or of the model's text."""
    header, payload = split(data)
    if rng.random() < 0.5:
        return join(_tokens(rng, header.decode("utf-8", "replace")).encode("utf-8", "replace"), payload)
    try:
        parsed = json.loads(header)
        parsed[META][MODEL] = _tokens(rng, parsed[META][MODEL])
        return join(dump(parsed), payload)
    except (ValueError, TypeError, KeyError, RecursionError):
        return data[:-1]


def _tokens(rng, text):
    found = list(_TOKEN.finditer(text))
    if not found:
        return text
    one, other = (found[i] for i in rng.integers(len(found), size=2))
    new = [NASTY[rng.integers(len(NASTY))], one[0] * 2, "", other[0], f"{one[0]},{other[0]}"][rng.integers(5)]
    return text[: one.start()] + new + text[one.end() :]


def _damage_entry(rng, data):
    """Change the type, shape or place of one tensor by a little."""
    header, payload = split(data)
    try:
        parsed = json.loads(header)
        names = [name for name in parsed if name != META]
        tensor = parsed[names[rng.integers(len(names))]]
        kind = rng.integers(4)
        if kind == 0:
            tensor["dtype"] = str(rng.choice([*schema.TYPES, "F64", "BF16", "I32", "U8"]))
        elif kind == 1:
            other = parsed[names[rng.integers(len(names))]]
            tensor["data_offsets"], other["data_offsets"] = other["data_offsets"], tensor["data_offsets"]
        else:
            values = tensor["shape" if kind == 2 else "data_offsets"]
            values[rng.integers(len(values))] += int(rng.choice([-128, -8, -4, -1, 1, 4, 8, 128]))
        return join(dump(parsed), payload)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return data[:-1]


def _damage_length(rng, data):
    kind = rng.integers(3)
    if kind == 0:
        return data[: rng.integers(len(data) + 1)]
    if kind == 1:
        return data + bytes(int(rng.integers(1, 9)))
    return struct.pack("<Q", max(0, len(split(data)[0]) + int(rng.integers(-9, 10)))) + data[8:]


def _damage_values(rng, data):
    """Set some number of a tensor to a special one, or flip a bit of it."""
    header, payload = split(data)
    if not payload:
        return data
    payload = bytearray(payload)
    at = int(rng.integers(len(payload)))
    if rng.random() < 0.5:
        payload[at] ^= 1 << int(rng.integers(8))
    else:
        special = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-30]
        struct.pack_into("<f", payload, min(at // 4 * 4, len(payload) // 4 * 4 - 4), special[rng.integers(8)])
    return join(header, bytes(payload))


_DAMAGES = (
    _damage_header, _damage_header, _damage_anywhere, _damage_tokens, _damage_tokens, _damage_tokens, _damage_entry,
    _damage_length, _damage_values, _damage_values,
)  # fmt: skip
