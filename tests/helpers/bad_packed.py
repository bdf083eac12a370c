"""Files that break one rule of docs/packed-format.md each, and files that just keep it.

Both readers, Python and C++, have to say the same of every one. The bases are the bytes of small packed files, in each
version; a row's file gets the checksums that fit it, but where the row is about them. Random damage: damaged_packed.py.
"""

import json
import math
import re
import struct
from typing import NamedTuple

import numpy as np
from random_packed import TINY, random_packed

from gsb_vit.runtime import packed_file, schema
from gsb_vit.runtime.checksum import plain_xxh64

META, MODEL = "__metadata__", "model"
HEADER_SUM, PAYLOAD_SUM = schema.CHECKSUM_KEYS
VERSIONS = tuple(schema.METADATA_KEYS)
BASES = {
    "relative": TINY,
    "fixed_full": dict(
        TINY, attention_bias="full", threshold_scope="fixed", embed_dim=40, num_heads=2, prefix_tokens=1
    ),
    "convolutions": dict(TINY, tokenizer_channels=(3, 5), global_pool="avg", prefix_tokens=0),
    "one_bit": dict(TINY, tokenizer_channels=(3, 70), level_bits=(1, 1), global_pool="avg", prefix_tokens=0),
    "no_groups": dict(
        TINY, attention_bias="none", threshold_scope="fixed", attention_thresholds=(), value_thresholds=(), mlp_hidden=7
    ),
}


NEWER = ("convolutions", "one_bit")  # bases that version 1 cannot hold


class Row(NamedTuple):
    """A change of a base file; ``reason`` is a pattern that both messages fit, or None where the file is good."""

    name: str
    base: str
    change: object  # bytes → bytes
    reason: str | None
    versions: tuple = VERSIONS
    seal: bool = True  # gets the checksums that fit

    def apply(self, data):
        """Return the bytes of the row's file."""
        data = self.change(data)
        return sealed(data) if self.seal else data


def base_files(folder):
    """Write the bases to ``folder`` and return their bytes by name and version."""
    files = {}
    for name, shape in BASES.items():
        packed_file.write(folder / name, random_packed(seed=5, **shape))
        files[name, "2"] = (folder / name).read_bytes()
        files[name, "1"] = version_1(files[name, "2"])
    return files


def version_1(data):
    """The same file as version 1."""
    header, payload = split(data)
    header = json.loads(header)
    header[META] = {"format": schema.FORMAT, "version": "1", MODEL: header[META][MODEL]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return join(text + b" " * (-len(text) % 8), payload)


def sealed(data):
    """The same file with the checksums that fit, where it has any and can be taken apart."""
    header, payload = split(data)
    try:
        entries = json.loads(header)
        places = sorted((*e["data_offsets"], name) for name, e in entries.items() if name != META)
        names = [name for begin, end, name in places if end > begin]
        text = "\n".join([entries[META][MODEL], *names]).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return data
    for key, content in ((HEADER_SUM, text), (PAYLOAD_SUM, payload)):
        digits = f"{plain_xxh64(np.frombuffer(content, np.uint8)):016x}".encode()
        header = re.sub(rb'("%b":\s*")[0-9a-f]{16}"' % key.encode(), rb'\g<1>%b"' % digits, header)
    return join(header, payload)


def split(data):
    """Bytes of a file → header text (bytes) and payload."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def join(header, payload):
    return struct.pack("<Q", len(header)) + header + payload


def dump(value):
    return json.dumps(value).encode()


def in_header(change):
    """A change of the header's text."""
    return lambda data: join(change(split(data)[0]), split(data)[1])


def in_json(change):
    """A change in place of the header's object and its parsed ``model``."""

    def apply(data):
        header, payload = split(data)
        header = json.loads(header)
        model = json.loads(header[META][MODEL])
        result = change(header, model)
        if header.get(META, {}).get(MODEL) is not None:
            header[META][MODEL] = json.dumps(model)
        return join(dump(header), payload if result is None else result(payload))

    return apply


def in_model_text(change):
    """A change of the text of ``model``."""

    def apply(data):
        header, payload = split(data)
        header = json.loads(header)
        header[META][MODEL] = change(header[META][MODEL])
        return join(dump(header), payload)

    return apply


def raw_provenance(text):
    """Put raw JSON text in place of the provenance."""
    return in_model_text(lambda model: re.sub(r'"provenance": \{.*?\}', lambda _: f'"provenance": {text}', model))


def put(part, key, value):
    """Set a value of the model's ``architecture`` or ``preprocessing``."""
    return in_json(lambda header, model: model[part].__setitem__(key, value))


def put_raw(part, key, text):
    """Set it to raw JSON text."""
    mark = "a mark to be replaced"
    return lambda data: in_model_text(lambda model: model.replace(f'"{mark}"', text))(put(part, key, mark)(data))


def entry(name, key, value):
    """Set a key of a tensor's entry."""
    return in_json(lambda header, model: header[name].__setitem__(key, value))


def set_item(name, index, value):
    """Set one number of a tensor."""

    def apply(data):
        header, payload = split(data)
        tensor = json.loads(header)[name]
        dtype = np.dtype(schema.TYPES[tensor["dtype"]])
        begin, end = tensor["data_offsets"]
        array = np.frombuffer(payload[begin:end], dtype).copy()
        array[index] = value
        return join(header, payload[:begin] + array.tobytes() + payload[end:])

    return apply


def table():
    """Every row of the strictness table and of the value rules, at its boundaries."""
    rows = [*_container(), *_json(), *_metadata(), *_checksums(), *_decision(), *_keys(), *_places(), *_values()]
    assert len({(row.name, row.base) for row in rows}) == len(rows)
    return rows


def _row(name, change, reason, base="relative"):
    return Row(name, base, change, reason, VERSIONS[1:] if base in NEWER else VERSIONS)


def _padded(size):
    return in_header(lambda header: header + b" " * (size - len(header)))


def _container():
    header = "not a packed model, or truncated"
    yield _row("as it is", lambda data: data, None)
    yield _row("as it is", lambda data: data, None, "fixed_full")
    yield _row("as it is", lambda data: data, None, "no_groups")
    yield _row("as it is", lambda data: data, None, "convolutions")
    yield Row("in version 1", "convolutions", lambda data: data, "unknown in version 1", VERSIONS[:1])
    for size in (0, 1, 7):
        yield _row(f"{size} bytes", lambda data, size=size: data[:size], f"has {size} bytes")
    yield _row("8 bytes", lambda data: data[:8], "longer than the file")
    yield _row("no header", lambda data: join(b"", b""), header)
    for length in (1, 2**31, 2**63, 2**64 - 1):
        change = lambda data, length=length: struct.pack("<Q", len(data) - 8 + length & 2**64 - 1) + data[8:]  # noqa: E731
        yield _row(f"header {length} too long", change, "longer than the file" if length < 2**64 - 1 else header)
    yield _row("longest header", _padded(schema.MAX_HEADER_BYTES), None)
    yield _row("too long a header", _padded(schema.MAX_HEADER_BYTES + 1), f"more than {schema.MAX_HEADER_BYTES} bytes")
    yield _row("odd header", in_header(lambda header: header.rstrip() + b" " * (1 + len(header.rstrip()) % 2)), None)
    yield _row("one byte missing", lambda data: data[:-1], "inside the file|whole number|end with its last tensor")
    yield _row("one byte more", lambda data: data + b"\0", "does not end with its last tensor")


def _json():
    no = "is not JSON"
    yield _row("spaces of all kinds", in_header(lambda header: b" \t\r\n" + header + b"\n\r\t "), None)
    for name, tail in {
        "a form feed": b"\f",
        "a zero": b"\0",
        "a value": b"{}",
        "a comma": b",",
        "nbsp": b"\xc2\xa0",
    }.items():
        yield _row(f"{name} behind", in_header(lambda header, tail=tail: header.rstrip() + tail), no)
    yield _row("byte order mark", in_header(lambda header: b"\xef\xbb\xbf" + header), no)
    yield _row("a list", in_header(lambda header: b"[]"), "JSON object")
    yield _row("a number", in_header(lambda header: b"1"), "JSON object")
    yield _row("an open object", in_header(lambda header: header.rstrip()[:-1]), no)
    yield _row("a comma at the end", in_header(lambda header: header.rstrip()[:-1] + b",}"), no)
    yield _row("a comment", in_header(lambda header: header.rstrip() + b"//"), no)
    yield _row("single quotes", in_header(lambda header: header.replace(b'"', b"'")), no)
    yield _row("metadata twice", in_header(lambda h: h.rstrip()[:-1] + b',"__metadata__":{}}'), "twice")
    yield _row("a tensor twice", in_header(lambda h: h.rstrip()[:-1] + b',"norm.bias":{}}'), "twice")
    yield _row("a tensor twice, escaped", in_header(lambda h: h.rstrip()[:-1] + b',"norm.bi\\u0061s":{}}'), "twice")
    twice = in_header(lambda header: header.replace(b'"dtype":', b'"dtype":"F32","dtype":', 1))
    yield _row("a dtype twice", twice, "twice")
    yield _row("an escaped name", in_header(lambda header: header.replace(b'"norm.bias"', b'"norm.bi\\u0061s"')), None)
    for name, text in {
        "overlong": b"\xc0\xaf", "surrogate": b"\xed\xa0\x80", "above the last": b"\xf4\x90\x80\x80",
        "cut": b"\xc3", "alone": b"\x80", "0xff": b"\xff",
    }.items():  # fmt: skip
        raw = in_header(lambda header, text=text: header.replace(b'\\"source\\"', b'\\"sou' + text + b'rce\\"'))
        yield _row(f"UTF-8: {name}", raw, no)
    yield _row("raw UTF-8", in_header(lambda h: h.replace(b'\\"source\\"', '\\"é€😀\\"'.encode())), None)
    yield _row("a raw tab in text", in_header(lambda h: h.replace(b'\\"source\\"', b'\\"sou\trce\\"')), no)
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 309, "1" + "0" * 5000,
                 "1.7976931348623159e308"):  # fmt: skip
        yield _row(f"number {text[:30]} {len(text)}", raw_provenance(f'{{"x": [{text}]}}'), no)
    for text in (
        "01",
        "+1",
        ".5",
        "1.",
        "1e",
        "-",
        "0x10",
        "1_0",
        "１",
        "--1",
        "1e+-1",
        "tru",
        "True",
        "nul",
        "undefined",
    ):
        yield _row(f"no value {text}", raw_provenance(f'{{"x": {text}}}'), no)
    for text in ("1e-999", "5e-324", "-0", "-0.0", "9" * 308, str(2**63), str(2**53 + 1), "1.7976931348623157e308",
                 "1.7976931348623158e308", "1E+2", "0.1" + "0" * 3000 + "1", "null", "true", "false", '"\\u0000"',
                 '"\\/\\b\\f\\n\\r\\t"', '"\\ud83d\\ude00"', '"x\\\\ude00"', "{}", "[]"):  # fmt: skip
        yield _row(f"value {text[:30]} {len(text)}", raw_provenance(f'{{"x": {text}}}'), None)
    for text in ('"\\ud800"', '"\\udc00"', '"\\ud800\\ud800\\udc00"', '"\\ud800x"', '"\\ud800\\n"', '"\\uDFFF\\uD800"',
                 '"\\u12"', '"\\u 123"', '"\\x41"', '"\\', '"\\u+123"'):  # fmt: skip
        yield _row(f"text {text}", raw_provenance(f'{{"x": {text}}}'), no)
    yield _row("lone surrogate as key", raw_provenance('{"\\udfff": 1}'), no)
    yield _row("lone surrogate in the header", in_json(lambda h, m: h.__setitem__("\ud800", {})), no)
    yield _row("key twice in provenance", raw_provenance('{"x": [{"y": 1, "\\u0079": 2}]}'), "twice")
    yield _row("architecture twice", in_model_text(lambda model: model[:-1] + ', "architecture": {}}'), "twice")
    yield _row(
        "depth twice", in_model_text(lambda model: model.replace('"depth": 1', '"depth": 1, "depth": 1')), "twice"
    )
    # The model and the provenance are two levels.
    for name, start, end in (("lists", "[", "]"), ("objects", '{"x":', "}")):
        for levels, inner, reason in ((62, "1", None), (63, "1", "nested"), (61, "[]", None), (62, "[]", None),
                                      (63, "[]", "nested"), (63, "{}", "nested"), (1000, "1", "nested"),
                                      (100_000, "1", "nested")):  # fmt: skip
            levels -= inner != "1"
            text = start * levels + inner + end * levels
            yield _row(f"{levels} {name} {inner}", raw_provenance(f'{{"x": {text}}}'), reason)
    yield _row("deep header", in_header(lambda header: b'{"x":' + b"[" * 200_000), "nested")


_METADATA = rb'(?<="__metadata__":)\{(?:"(?:[^"\\]|\\.)*"|[:,])*\}'


def _metadata():
    def metadata(change):
        return in_json(lambda header, model: change(header[META]))

    none = "gsb-vit export"
    yield _row("no metadata", in_json(lambda header, model: header.pop(META) and None), none)
    yield _row("metadata is null", in_header(lambda h: re.sub(_METADATA, b"null", h)), META)
    yield _row("metadata is a list", in_header(lambda h: re.sub(_METADATA, b"[]", h)), META)
    yield _row("format", metadata(lambda m: m.update(format="gsb-vit-Packed")), none)
    yield _row("no format", metadata(lambda m: m.pop("format") and None), none)
    for version in ("3", "01", "02", "1.0", "2.0", "", "\n\n", "x" * 1000):
        yield _row(
            f"version {version[:9]!r}", metadata(lambda m, v=version: m.update(version=v)), "version .* is unknown"
        )
    yield _row("no version", metadata(lambda m: m.pop("version") and None), "version .* is unknown")
    yield _row("version is a number", metadata(lambda m: m.update(version=1)), "text")
    yield _row("no model", metadata(lambda m: m.pop(MODEL) and None), "'model' is missing")
    yield _row(
        "model is an object", in_header(lambda h: re.sub(rb'"model":"(?:[^"\\]|\\.)*"', b'"model":{}', h)), "text"
    )
    yield _row("more metadata", metadata(lambda m: m.update(author="me")), "unknown")
    yield _row("model is empty", in_model_text(lambda model: ""), "is not JSON")
    yield _row("model is a list", in_model_text(lambda model: f"[{model}]"), "JSON object")
    yield _row("spaces around the model", in_model_text(lambda model: f" \n{model}\t"), None)
    for key in schema.MODEL_KEYS:
        yield _row(f"no {key}", in_json(lambda h, m, key=key: m.pop(key) and None), f"'{key}' is missing")
        for value in (None, 1, "x", True):
            yield _row(f"{key} is {value}", in_json(lambda h, m, k=key, v=value: m.__setitem__(k, v)), key)
    yield _row("provenance is a list", in_json(lambda h, m: m.update(provenance=[])), "provenance")
    yield _row("more in the model", in_json(lambda h, m: m.update(x=1)), "unknown")
    for names in ([], ["a"] * 3, ["a"] * 5, {}):
        yield _row(
            f"class names {names}", in_json(lambda h, m, n=names: m.update(class_names=n)), "class_names|names for"
        )
    yield _row("a name is a number", in_json(lambda h, m: m["class_names"].__setitem__(3, 3)), "name")
    yield _row("odd names", in_json(lambda h, m: m.update(class_names=["", "a", "a", "\0é😀\n"])), None)


def _decision():
    """The decision, which version 1 does not know."""

    def row(name, decision, reason):
        change = in_json(lambda header, model: model.__setitem__(schema.DECISION_KEY, decision))
        yield Row(f"decision: {name}", "relative", change, reason, ("2",))
        yield Row(f"decision in version 1: {name}", "relative", change, "unknown|decision", ("1",))

    unknown = {"score": "energy", "threshold": -3.5, "false_alarm_rate": 0.05}
    for name, decision in {
        "temperature": {"temperature": 1.5},
        "whole temperature": {"temperature": 1000},
        "max_logit": {"temperature": 1, "unknown": {**unknown, "score": "max_logit"}},
        "energy": {"temperature": 1e-9, "unknown": {**unknown, "threshold": 0, "false_alarm_rate": 1}},
    }.items():
        yield from row(name, decision, None)
    for value in (None, 1, [], "x", True):
        yield from row(f"is {value}", value, "decision")
        yield from row(f"unknown is {value}", {"temperature": 1, "unknown": value}, "unknown")
    yield from row("empty", {}, "temperature")
    yield from row("no temperature", {"unknown": unknown}, "temperature")
    yield from row("one key more", {"temperature": 1, "bias": 0}, "unknown")
    for value in (0, -1, 1000.5, "1", None, True, [1]):
        yield from row(f"temperature {value}", {"temperature": value}, "temperature")
    for key in unknown:
        less = {name: value for name, value in unknown.items() if name != key}
        yield from row(f"no {key}", {"temperature": 1, "unknown": less}, key)
        yield from row(f"{key} is null", {"temperature": 1, "unknown": {**unknown, key: None}}, key)
    yield from row("a key more in unknown", {"temperature": 1, "unknown": {**unknown, "x": 1}}, "unknown")
    for key, value in (("score", "Energy"), ("false_alarm_rate", 1.01), ("false_alarm_rate", -0.01)):
        yield from row(f"{key} {value}", {"temperature": 1, "unknown": {**unknown, key: value}}, key)


def _checksums():
    """What version 2 adds to the metadata."""

    def one(name, change, reason, **options):
        yield Row(name, "relative", change, reason, **options)

    def metadata(change):
        return in_json(lambda header, model: change(header[META]))

    def flip(at, bit):
        """Flip a bit of the byte ``at`` of the file; negative: from its end."""

        def apply(data):
            data = bytearray(data)
            data[at] ^= 1 << bit
            return bytes(data)

        return apply

    two = {"versions": ("2",), "seal": False}
    names = {HEADER_SUM: "header_xxh64 is", PAYLOAD_SUM: "payload_xxh64 is"}
    for key, differs in names.items():
        yield from one(f"no {key}", metadata(lambda m, k=key: m.pop(k) and None), f"'{key}' is missing", **two)
        yield from one(f"wrong {key}", metadata(lambda m, k=key: m.update({k: "0123456789abcdef"})), differs, **two)
        for text in ("", "0" * 15, "0" * 17, "0" * 15 + "g", "0" * 15 + "A", "0x" + "0" * 14, " " + "0" * 15,
                     "0" * 15 + "\n", "0" * 16 + "\n", "٠" * 16, "0" * 1000):  # fmt: skip
            change = metadata(lambda m, k=key, text=text: m.update({k: text}))
            yield from one(f"{key} {text[:20]!r} {len(text)}", change, f"{key} must be 16 lower-case", **two)
        yield from one(f"{key} is a number", metadata(lambda m, k=key: m.update({k: 1})), "text", **two)
        upper = metadata(lambda m, k=key: m.update({k: m[k].upper() if m[k] != m[k].upper() else "A" * 16}))
        yield from one(f"{key} in capitals", upper, f"{key} must be 16 lower-case", **two)
        value = "0123456789abcdef"
        change = metadata(lambda m, k=key, v=value: m.update({k: v}))
        yield from one(f"version 1 with {key}", change, "unknown", versions=("1",))
    both = metadata(lambda m: m.update({key: "0" * 16 for key in names}))
    yield from one("version 1 with both", both, "unknown", versions=("1",))
    yield from one("version 1 called 2", metadata(lambda m: m.update(version="2")), "'.*_xxh64' is missing",
                   versions=("1",))  # fmt: skip
    yield from one("version 2 called 1", metadata(lambda m: m.update(version="1")), "unknown", **two)
    yield from one("the sums swapped", metadata(_swap_sums), names[HEADER_SUM], **two)
    for at in (-1, -2, -100, -1000, -2000):
        for bit in (0, 7):
            yield from one(f"bit {bit} of byte {at}", flip(at, bit), names[PAYLOAD_SUM], **two)
    # A change that every other rule allows.
    for name, key, value in (("name", "name", "other"), ("eps", "layer_norm_eps", 1e-5)):
        change = put("architecture", key, value)
        yield from one(f"another {name}, old sum", change, names[HEADER_SUM], **two)
        yield from one(f"another {name}", change, None)
    yield from one("other class names", in_json(lambda h, m: m["class_names"].reverse()), names[HEADER_SUM], **two)
    yield from one("other provenance", raw_provenance('{"x": 1}'), names[HEADER_SUM], **two)
    yield from one("a space in the model", in_model_text(lambda model: model + " "), names[HEADER_SUM], **two)
    yield from one("two places swapped", in_json(_swap), names[HEADER_SUM], **two)
    yield from one("another number", set_item("norm.bias", 0, 0.125), names[PAYLOAD_SUM], **two)
    yield from one("another header for the same content", in_json(_reverse), None, **two)
    yield from one("no payload", lambda data: join(split(data)[0], b""), "inside the file|whole number", **two)


def _swap_sums(metadata):
    metadata[HEADER_SUM], metadata[PAYLOAD_SUM] = metadata[PAYLOAD_SUM], metadata[HEADER_SUM]


def _swap(header, model):
    one, other = header["norm.bias"], header["norm.weight"]
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def _keys():
    for part, keys in (("architecture", schema.ARCHITECTURE), ("preprocessing", schema.PREPROCESSING)):
        yield _row(f"{part} is a list", in_json(lambda h, m, p=part: m.update({p: []})), "JSON object")
        yield _row(f"more in {part}", put(part, "x", 1), "unknown")
        for key in keys:
            if not key.optional:
                missing = in_json(lambda h, m, p=part, k=key.name: m[p].pop(k) is None or None)
                yield _row(f"{part} without {key.name}", missing, f"'{key.name}' is missing")
            for value in _wrong(key):
                reason = f"{key.name}|no multiple|tokens|pictures of"
                yield _row(f"{part}.{key.name} {json.dumps(value)[:60]}", put(part, key.name, value), reason)
            if key.kind == "whole":
                for text in ("2.0", "2e0", "20E-1", "9007199254740993"):
                    text = f"[{text}, 16]" if key.items else text
                    yield _row(f"{part}.{key.name} {text}", put_raw(part, key.name, text), key.name)
    for value in (0, 1, 0.0, 1.0, 1e-300):
        yield _row(f"eps {value!r}", put("architecture", "layer_norm_eps", value), None)
    for value in ([1e-300, 0.9999999999999999], [0.5, 0.5000000000000001]):
        yield _row(f"thresholds {value!r}", put("architecture", "attention_thresholds", value), None)
    for value in (1, 5e-324):
        yield _row(f"crop {value!r}", put("preprocessing", "crop_ratio", value), None)
    for value in ([1, 2, 3], [0, -1e308, 5.0]):
        yield _row(f"mean {value!r}", put("preprocessing", "mean", value), None)
    yield _row("std", put("preprocessing", "std", [5e-324, 1, 1e308]), None)
    for resize in schema.RESIZES:
        yield _row(f"resize {resize}", put("preprocessing", "resize", resize), None)
    for filter_ in schema.FILTERS:
        yield _row(f"filter {filter_}", put("preprocessing", "interpolation", filter_), None)
    for value in ("", "é😀", "a\nb", "x" * 1000):
        yield _row(f"name {value[:9]!r}", put("architecture", "name", value), None)
    yield _row("another name key", put("architecture", "nam\ne", ""), "unknown")
    yield _row("other picture size", put("preprocessing", "size", [16, 8]), "pictures of")
    yield _row("a picture of too many pixels", in_json(_huge_pictures), "pixels")
    yield _row("patches do not fit", put("architecture", "patch_size", [8, 7]), "no multiple")
    yield _row("heads do not fit", put("architecture", "num_heads", 3), "no multiple")
    less = ("relative", put("architecture", "num_heads_out", 1))
    yield Row("a head less", *less, "does not belong", VERSIONS[1:])
    yield Row("a head less in version 1", *less, "must equal", VERSIONS[:1])
    yield _row("more heads than tokens", put("architecture", "prefix_tokens", 1), "more than prefix_tokens")
    for key, value, reason in (
        ("patch_size", [4, 4], "stride of 3 convolutions"),
        ("patch_size", [8, 16], "stride of 3 convolutions"),
        ("num_heads_out", 2, "must be 1"),
        ("global_pool", "token", "more than prefix_tokens"),
        ("pool_norm", "before", None),
        ("prefix_tokens", 1, "prefix_tokens|attn.bias"),
        ("tokenizer_channels", [], "patch_embed.weight"),
        ("tokenizer_channels", [3], "stride of 2 convolutions"),
        ("tokenizer_channels", [3, 6], "tokenizer.1.weight"),
    ):
        yield _row(f"{key} {value}", put("architecture", key, value), reason, "convolutions")
    yield from _level_formats()
    yield Row("a norm before no pool", "relative", put("architecture", "pool_norm", "before"), "avg", VERSIONS[1:])
    for key in schema.OPTIONAL:
        default = schema.Architecture.__dataclass_fields__[key].default
        row = (f"{key} at its default", "relative", put("architecture", key, default))
        yield Row(*row, None, VERSIONS[1:])
        yield Row(*(f"{row[0]} in version 1", *row[1:]), "unknown in version 1", VERSIONS[:1])
    big = {"image_size": [1025, 1024], "patch_size": [1, 1]}
    yield _row("too many tokens", in_json(lambda h, m: m["architecture"].update(big)), "tokens")
    yield _row("deep", put("architecture", "depth", 1024), "missing")
    yield _row("fewer blocks", put("architecture", "depth", 2), "missing")


def _level_formats():
    """Of a model of three convolutions, one-bit and 8-bit."""
    byte, bit = {"bits": 8, "signed": False}, {"bits": 1, "signed": False}
    for base, formats, reason in (
        ("convolutions", [byte, byte], None),
        ("convolutions", [{"signed": False, "bits": 8}, byte], None),
        ("convolutions", [], None),
        ("convolutions", [byte, bit], "tokenizer.2.weight"),
        ("convolutions", [bit, byte], "tokenizer.1.weight"),
        ("convolutions", [byte], "1 tokenizer_formats for 2"),
        ("convolutions", [byte] * 3, "3 tokenizer_formats for 2"),
        ("convolutions", [{"bits": 8}, byte], "tokenizer_formats .* unsigned"),
        ("convolutions", [{}, byte], "tokenizer_formats .* unsigned"),
        ("convolutions", [{**byte, "bits": 4}, byte], "tokenizer_formats .* unsigned"),
        ("one_bit", [bit, {"signed": False}], None),
        ("one_bit", [bit, bit], None),
        ("one_bit", [bit, byte], "tokenizer.2.weight"),
        ("one_bit", [bit], "1 tokenizer_formats for 2"),
        ("one_bit", [bit, {"bits": 1, "signed": True}], "tokenizer_formats .* unsigned"),
        ("one_bit", [bit, {"bits": 1, "signed": 0}], "tokenizer_formats: .*signed"),
        ("one_bit", [bit, {**bit, "planes": 1}], "tokenizer_formats: .*unknown"),
        ("one_bit", [], "tokenizer.1.weight"),
    ):
        yield _row(f"formats {formats}", put("architecture", "tokenizer_formats", formats), reason, base)


def _huge_pictures(_, model):
    """One pixel more than 64 million, in the patches of a model with few tokens."""
    size = [8000, 8001]
    model["architecture"].update(image_size=size, patch_size=[1000, 889])
    model["preprocessing"]["size"] = size


def _wrong(key):
    """Values that a key refuses: of other kinds, and just outside its limits."""
    if key.items is None:
        yield from _wrong_items(key)
        yield from ([], {})
        return
    right = {"whole": 8, "number": 0.5, "object": {"bits": 1, "signed": False}}[key.kind]
    least, most = key.items
    if least:
        yield [right] * (least - 1)
    if key.increasing:
        yield [0.01 * (i + 1) for i in range(most + 1)]
        yield from ([0.5, 0.5], [0.9, 0.7])
    else:
        yield [right] * (most + 1)
    for wrong in _wrong_items(key):
        yield [right] * (max(least, 1) - 1) + [wrong]
    yield from ([[right] * least], right, "[]", {}, None)


def _wrong_items(key):
    yield from (None, True, False)
    if key.kind in ("text", "choice"):
        yield from (1, 0.5)
        if key.kind == "choice":
            yield from ("", key.choices[0].upper(), key.choices[0] + " ", key.choices[0] + "\n", "x" * 100_000)
        return
    if key.kind == "object":
        yield from (1, "{}", {"bits": 8, "bit": 1}, {"bits": 9}, {"bits": 8.0}, {"bits": "8"}, {"signed": 0})
        return
    yield from ("1", -5 if key.kind == "whole" else "0.5", [1])
    if key.kind == "whole":
        yield from (key.least - 1, key.most + 1, 1.5, 2**31, 2**32 + 1, 2**53, 2**64 + 1, 10**300)
    else:
        yield from (math.nextafter(limit, -math.inf) for limit in [key.least] if math.isfinite(limit))
        yield from (math.nextafter(limit, math.inf) for limit in [key.most] if math.isfinite(limit))
        yield from (limit for limit in (key.above, key.below) if math.isfinite(limit))


def _places():
    whole, place = "whole number", "does not fill|does not begin|does not end"
    for key in schema.TENSOR_KEYS:
        yield _row(f"entry without {key}", in_json(lambda h, m, k=key: h["norm.bias"].pop(k) and None), key)
    yield _row("entry with more", entry("norm.bias", "x", 1), "norm.bias")
    yield _row("entry is a list", in_json(lambda h, m: h.__setitem__("norm.bias", [])), "norm.bias")
    for dtype in ("f32", "F64", "I32", "BOOL", "F32 ", "", "x\ny", 32, None):
        yield _row(f"type {dtype!r}", entry("norm.bias", "dtype", dtype), "norm.bias")
    for dtype in ("I16", "F16", "U64"):
        yield _row(f"type {dtype}", entry("norm.bias", "dtype", dtype), "does not fill")
    yield _row("same bytes, other type", entry("heads.0.weight", "dtype", "I8"), None)
    same = in_json(lambda h, m: h["norm.bias"].update(dtype="F16", shape=[64]))
    yield _row("same bytes, other type and shape", same, "tensor norm.bias is .*, not ")
    for shape in ([32, 1], [1, 32], [8, 4]):
        yield _row(f"shape {shape}", entry("norm.bias", "shape", shape), "tensor norm.bias is .*, not ")
    for shape in ([], [31], [33], [0], [2**53], [2**52, 2**52], [2**33, 2**33, 0]):
        yield _row(f"shape {shape}", entry("norm.bias", "shape", shape), "norm.bias")
    for shape in ([32.0], [True], ["32"], [-32], [None], [[32]], 32, None, "32", {}, [2**53 + 1], [2**64]):
        yield _row(f"shape {shape!r}", entry("norm.bias", "shape", shape), f"norm.bias|{whole}")
    yield _row("minus zero", in_header(lambda h: re.sub(rb'"data_offsets":\[0,', b'"data_offsets":[-0,', h)), None)
    for name, new in {"float": b"[0.0,", "exponent": b"[0e0,", "minus": b"[-1,", "text": b'["0",', "no": b"["}.items():
        change = in_header(lambda h, new=new: re.sub(rb'"data_offsets":\[0,', b'"data_offsets":' + new, h))
        yield _row(f"begin: {name}", change, f"tensor|{whole}")
    for offsets in (
        [],
        [0],
        [0, 128, 128],
        [2**53, 2**53 + 128],
        [2**64, 2**64 + 128],
        [128, 0],
        {},
        None,
        [False, 128],
    ):
        yield _row(f"offsets {offsets}", entry("norm.bias", "data_offsets", offsets), "norm.bias")

    def move(name, begin, end):
        def change(header, model):
            offsets = header[name]["data_offsets"]
            header[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

        return in_json(change)

    yield _row("moved on", move("norm.bias", 4, 4), place)
    yield _row("moved back", move("norm.bias", -4, -4), place)
    yield _row("longer", move("norm.bias", 0, 4), place)
    yield _row("begins later", move("norm.bias", 4, 0), place)

    def same_place(header, model):
        header["norm.bias"]["data_offsets"] = header["norm.weight"]["data_offsets"]

    def shifted(header, model):
        for name in header:
            if name != META:
                header[name]["data_offsets"] = [offset + 8 for offset in header[name]["data_offsets"]]
        return lambda payload: bytes(8) + payload

    yield _row("two in one place", in_json(same_place), place)
    yield _row("two swapped", in_json(_swap), None)
    yield _row("a hole at the start", in_json(shifted), place)
    yield _row("reversed header", in_json(_reverse), None)
    for at in (0, 4):
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [at, at]}
        add = in_json(lambda h, m, empty=empty: h.__setitem__("empty\ntensor" + "x" * 500, empty))
        yield _row(f"a foreign empty tensor at {at}", add, "does not belong" if at == 0 else "does not b")
    yield _row("a foreign tensor", in_json(_foreign), "does not belong")
    yield _row("a foreign head", in_json(lambda h, m: _foreign(h, m, "heads.2.bias")), "does not belong")

    def rename(header, model):
        header["norm.bias "] = header.pop("norm.bias")

    def moved_empty(header, model):
        size = max(item["data_offsets"][1] for name, item in header.items() if name != META)
        header["blocks.0.attn.value_limits"]["data_offsets"] = [size, size]

    yield _row("a name with a space", in_json(rename), "missing")
    yield _row("empty tensor at the end", in_json(moved_empty), None, "no_groups")
    for name in ("relative", "fixed_full", "no_groups"):
        for key, values in (("attention_bias", schema.ATTENTION_BIASES), ("threshold_scope", schema.THRESHOLD_SCOPES)):
            shape = {"threshold_scope": "sample", "attention_bias": "relative", **BASES[name]}
            for value in values:
                if value != shape[key]:
                    yield _row(f"{key} {value}", put("architecture", key, value), "tensor", name)
        yield _row("another depth of the MLP", put("architecture", "mlp_hidden", 64), "tensor", name)
        yield _row("other groups", put("architecture", "attention_thresholds", [0.5]), "tensor", name)


def _reverse(header, model):
    items = list(header.items())[::-1]
    header.clear()
    header.update(items)


def _foreign(header, model, name="foreign"):
    size = max(item["data_offsets"][1] for key, item in header.items() if key != META)
    header[name] = {"dtype": "I8", "shape": [3], "data_offsets": [size, size + 3]}
    return lambda payload: payload + b"abc"


def _values():
    for base, shape in BASES.items():
        architecture = random_packed(seed=5, **shape).architecture
        for name, tensor in schema.tensors_of(architecture):
            missing = in_json(lambda h, m, name=name: h.pop(name) and None)
            yield _row(f"without {name}", missing, "missing|does not (begin|end)", base)
            sides = schema.expected_tensors(architecture)[name][1]
            if 0 in sides:
                continue
            if tensor.dtype.startswith("float"):
                for index in (0, -1):
                    for value in (math.nan, math.inf, -math.inf):
                        yield _row(f"{name} {index} {value}", set_item(name, index, value), "not finite", base)
            yield from _rule(base, architecture, name, tensor.rule)


def _rule(base, architecture, name, rule):
    high = rule.high.of(architecture, schema.convolution_of(name))
    for index in (0, -1):
        if rule.kind == "range":
            for value, reason in ((rule.low - 1, "outside"), (rule.low, None), (high, None), (high + 1, "outside")):
                yield _row(f"{name} {index} {value}", set_item(name, index, value), reason, base)
    if rule.kind == "bits" and high % 64:
        words = -(-high // 64)
        for row in (1, 2):
            for bit in (high % 64, 63):
                change = set_item(name, row * words - 1, np.uint64(1 << bit))
                yield _row(f"{name} row {row} bit {bit}", change, "pad bits", base)
        change = set_item(name, -1, np.uint64(1 << (high % 64 - 1)))
        yield _row(f"{name} last bit", change, None, base)
    if rule.kind == "positive":
        for value, reason in ((0.0, "above 0"), (-0.0, "above 0"), (-1, "above 0"), (1e-30, None)):
            yield _row(f"{name} {value}", set_item(name, 0, value), reason, base)
    if rule.kind == "falling":
        for index, value in ((0, 0.99), (0, 1.0001), (1, 1.5), (-1, 2.0), (-1, -1e-30), (1, -1.0), (0, 0.0)):
            yield _row(f"{name} {index} {value}", set_item(name, index, value), "does not fall", base)
        for index, value in ((1, 1.0), (-1, 0.0), (-1, -0.0)):
            yield _row(f"{name} {index} {value}", set_item(name, index, value), None, base)
