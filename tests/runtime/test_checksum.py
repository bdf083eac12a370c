"""XXH64, and what it finds: a packed file of version 2 whose bytes have changed is refused by both readers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bad_packed import BASES, META, sealed, set_item, split, version_1
from processes import HANG_SECONDS
from random_packed import random_packed

from gsb_vit.errors import InputError
from gsb_vit.runtime import packed_file, schema
from gsb_vit.runtime.checksum import plain_xxh64, xxh64
from gsb_vit.runtime.classifier import load

OLD = Path(__file__).with_name("old") / "model.safetensors"


@pytest.fixture(scope="module")
def native():
    return pytest.importorskip("gsb_vit._native", reason="the native extension is not built")


@pytest.fixture
def path(tmp_path):
    packed_file.write(tmp_path / "model.safetensors", random_packed(seed=5, **BASES["relative"]))
    return tmp_path / "model.safetensors"


def test_known_values():
    """Those of docs/packed-format.md."""
    known = {b"": 0xEF46DB3751D8E999, b"abc": 0x44BC2CF5AD770999, bytes(range(100)): 0x6AC1E58032166597}
    for data, expected in known.items():
        for function in (xxh64, plain_xxh64):
            assert function(np.frombuffer(data, np.uint8)) == expected


def test_the_extension_and_plain_python_agree_at_every_length_and_place(native):
    data = np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8)
    for size in range(200):
        for begin in (0, 1, 7):
            part = data[begin : begin + size]
            assert native.xxh64(part) == plain_xxh64(part) == xxh64(part), (begin, size)
    assert len({native.xxh64(data[:size]) for size in range(200)}) == 200


def test_what_is_written_is_version_2_with_known_checksums(tmp_path):
    """The sums may not depend on the day: these are of the tensors and the text of the old file."""
    packed_file.write(tmp_path / "again", packed_file.read(OLD))
    metadata = json.loads(split((tmp_path / "again").read_bytes())[0])[META]
    assert metadata["version"] == "2"
    assert {key: metadata[key] for key in schema.CHECKSUM_KEYS} == {
        "header_xxh64": "cb69fb8a0493cd24",
        "payload_xxh64": "4625fc143d51d9f4",
    }


def test_the_test_helper_seals_as_the_writer_does(path):
    data = path.read_bytes()
    assert sealed(data) == data
    other = set_item("norm.bias", 0, 0.5)(data)
    assert sealed(other) != other


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_every_version_gives_the_same_logits(path, tmp_path, engine):
    if engine == "native":
        pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
    (tmp_path / "one").write_bytes(version_1(path.read_bytes()))
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    logits = [load(name, threads=1, engine=engine).logits(pictures) for name in (path, tmp_path / "one")]
    assert logits[0].tobytes() == logits[1].tobytes()


def test_any_flipped_bit_is_found_by_both_readers(path, native):
    """Bits all over the file: in the length, the header, its padding, the payload."""
    data = path.read_bytes()
    header = 8 + len(split(data)[0])
    bits = [*range(64), *range(64, 8 * header, 53), *range(8 * header, 8 * len(data), 997), 8 * len(data) - 1]
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        for reader in (packed_file.read, lambda path: native.Model(str(path), 1)):
            with pytest.raises(ValueError, match=r"model\.safetensors: ") as caught:
                reader(path)
            assert bit < 8 * header or "payload_xxh64 is" in str(caught.value), bit


def test_a_pickled_model_is_verified_again(path, native):
    model = native.Model(str(path), 1)
    data, *rest = model.__getstate__()
    damaged = bytes([*data[:-1], data[-1] ^ 1])
    with pytest.raises(native.NativeError, match="payload_xxh64 is"):
        native.Model.__new__(native.Model).__setstate__((damaged, *rest))


def test_the_reference_verifies_without_the_extension(path):
    code = (
        "import sys; sys.modules['gsb_vit._native'] = None\n"
        "from gsb_vit.runtime.packed_file import read\n"
        "try:\n    print(len(read(sys.argv[1]).tensors))\nexcept ValueError as error:\n    print(error)"
    )
    data = path.read_bytes()
    said = []
    for content in (data, data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
        )
        said.append(done.stdout.strip())
    assert int(said[0]) > 30 and "payload_xxh64 is" in said[1]


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_huge_file_is_refused_before_it_is_read(tmp_path, engine):
    """Sparse: no disk holds it, and what read it would take a gigabyte."""
    if engine == "native":
        pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(schema.MAX_MEMORY + 1)
    with pytest.raises(
        InputError, match=rf"huge: cannot be read \(has {2**30 + 1} bytes, more than {2**30}; raise max_memory"
    ):
        load(path, engine=engine)


def test_a_path_with_a_nul_is_refused_in_one_line(path, native):
    """The C library would take it for the path that ends there."""
    for name in (f"{path}\0", f"{path}\0.exe", "\0"):
        for action in (
            packed_file.read,
            lambda name: native.Model(name, 1),
            lambda name: load(name),
            lambda name: load(name, engine="reference"),
            lambda name: packed_file.write(name, random_packed(seed=5, **BASES["relative"])),
        ):
            with pytest.raises(ValueError, match="NUL") as caught:
                action(name)
            assert isinstance(caught.value, InputError | native.NativeError)
            assert "\0" not in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert [item.name for item in path.parent.iterdir()] == [path.name]
