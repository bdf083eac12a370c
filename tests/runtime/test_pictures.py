"""What a classifier may be asked about, in which numbers, and what it answers: predict, predict_proba, embed, repr."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from needs import needs
from PIL import Image
from random_packed import SHAPES, TINY, random_pictures, write_random_packed

from gsb_vit.errors import InputError
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.reference import ReferenceModel

try:
    from gsb_vit import _native

    BACKENDS = _native.backends()
except ImportError:
    BACKENDS = []
ENGINES = ["reference", *(["native"] if BACKENDS else [])]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "tiny.safetensors"
    write_random_packed(path, seed=0, **TINY)
    return path


@pytest.fixture(scope="module", params=ENGINES)
def model(request, tiny):
    return load(tiny, engine=request.param, **({"threads": 1} if request.param == "native" else {}))


@pytest.fixture
def forms(model, tmp_path):
    """One picture in every form that is read, by name."""
    array = random_pictures(model.architecture, 1)[0]
    path = tmp_path / "one.png"
    Image.fromarray(array).save(path)
    data = path.read_bytes()
    return array, {
        "path": path,
        "text": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "file": path.open("rb"),
        "Pillow": Image.fromarray(array),
        "array": array,
    }


def test_every_form_of_a_picture_gives_the_same_answers(model, forms):
    array, given = forms
    logits = model.logits(array[None])[0].astype(np.float64)
    powers = np.exp(logits - logits.max())
    for name, picture in given.items():
        assert model.predict_proba(picture) == pytest.approx(powers / powers.sum()), name
        if hasattr(picture, "seek"):
            picture.seek(0)
        assert [one.name for one in model.predict(picture, top=1)] == [model.class_names[powers.argmax()]], name
        if hasattr(picture, "seek"):
            picture.seek(0)
        assert model.embed(picture).tobytes() == model.embed(array).tobytes(), name
    given["file"].close()


@pytest.mark.parametrize("size", [(40, 30), (16, 16), (90, 5), (7, 200)])
def test_prepare_makes_the_pixels_of_preprocessing(model, tmp_path, size):
    array = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "one.png")
    expected = model.preprocessing(array)
    wide = np.random.default_rng(3).integers(0, 2**16, size, dtype=np.uint16)
    for picture in (array, tmp_path / "one.png", Image.fromarray(array), array[:, ::-1][:, ::-1]):
        assert np.array_equal(model.prepare(picture), expected)
    for picture in (array[..., 0], array[..., :1], np.dstack([array, array[..., 1]]), wide):
        assert np.array_equal(model.prepare(picture), model.preprocessing(picture))
    with pytest.raises(InputError, match="not a picture"):
        model.prepare(array[..., :2])


def test_only_the_reference_resizes_with_pillow(model, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("Pillow resizes")

    monkeypatch.setattr(Image.Image, "resize", refuse)
    array = np.random.default_rng(3).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    if model.backend == "reference":
        with pytest.raises(AssertionError, match="Pillow resizes"):
            model.predict(array)
    else:
        assert len(model.predict([array, Image.fromarray(array)])) == 2


def test_a_file_object_is_read_from_where_it_stands(model, forms):
    array, given = forms
    file = io.BytesIO(b"skipped" + given["bytes"])
    file.seek(7)
    assert model.predict_proba(file) == pytest.approx(model.predict_proba(array))


@pytest.mark.parametrize("method", ["predict", "predict_proba", "embed"])
@pytest.mark.parametrize("count", [0, 3, 70])
def test_many_pictures_are_answered_one_by_one(model, method, count):
    pictures = random_pictures(model.architecture, count, seed=2)
    ask = getattr(model, method)
    alone = [ask(one) for one in pictures]
    for stored in (pictures, list(pictures), tuple(pictures)):
        together = ask(stored)
        assert len(together) == count and isinstance(together, list if method == "predict" else np.ndarray)
        assert np.array_equal(np.array(together, dtype=object), np.array(alone, dtype=object)) or count == 0
    stream = ask(one for one in pictures)
    assert iter(stream) is stream
    assert [np.array(one).tolist() for one in stream] == [np.array(one).tolist() for one in alone]


def test_no_pictures_give_empty_arrays(model):
    assert model.predict([]) == []
    assert model.predict_proba([]).shape == (0, 4) and model.predict_proba([]).dtype == np.float64
    assert model.embed([]).shape == (0, 64) and model.embed([]).dtype == np.float32


def test_a_stream_without_end_is_read_as_it_is_asked(model):
    picture = random_pictures(model.architecture, 1)[0]
    read_so_far = []

    def endless():
        for number in itertools.count():
            read_so_far.append(number)
            yield picture

    answers = model.predict(endless(), top=1)
    assert read_so_far == []
    first = list(itertools.islice(answers, 65))
    assert len(first) == 65 and len(read_so_far) == 128


def test_what_is_wrong_in_a_stream_is_named_after_the_pictures_before_it(model):
    picture = random_pictures(model.architecture, 1)[0]
    answers = model.predict_proba(iter([picture, picture, b"no picture"]))
    next(answers), next(answers)
    with pytest.raises(InputError, match=r"^picture 2, counted from 0: a picture of 10 bytes .*: not a picture"):
        next(answers)
    with pytest.raises(InputError, match=r"^missing\.png: cannot be read"):
        model.embed([picture, "missing.png"])
    with pytest.raises(InputError, match="top"):
        model.predict(iter([picture]), top=0)  # at once, not with the first answer


class Closed(io.BytesIO):
    def __init__(self):
        super().__init__(b"x")
        self.close()


@pytest.mark.parametrize(
    ("picture", "what"),
    [
        ("https://example.org/a.png", "https://example.org/a.png: URLs are not fetched"),
        ("http://example.org/a.png", "URLs are not fetched"),
        ("s3://bucket/a.png", "URLs are not fetched"),
        ("file:///tmp/a.png", "URLs are not fetched"),
        ("data:/png", "URLs are not fetched"),
        (Path("https://example.org/a.png"), "URLs are not fetched"),
        (b"", "a picture of 0 bytes .*: not a picture"),
        (io.StringIO("text"), "gives str, not bytes; open it in binary mode"),
        (Closed(), "cannot be read .*closed"),
        (7, "a int is not a picture"),
        (None, "a NoneType is not a picture"),
        ("a\0b", "holds a NUL"),
    ],
    ids=[f"case {number}" for number in range(12)],
)
def test_what_is_no_picture_is_refused_in_one_line(model, picture, what):
    for ask in (model.predict, model.predict_proba, model.embed):
        with pytest.raises(InputError, match=what) as error:
            ask(picture)
        assert "\n" not in str(error.value)


def test_a_file_whose_name_looks_like_a_url_is_a_file(model, forms, tmp_path, monkeypatch):
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3:" / "a.png").write_bytes(forms[1]["bytes"])
    monkeypatch.chdir(tmp_path)
    assert model.predict_proba("s3:/a.png") == pytest.approx(model.predict_proba(forms[0]))


@needs("the extension", "native", bool(BACKENDS))
@pytest.mark.parametrize("shape", SHAPES)
def test_both_engines_embed_alike_to_the_last_bit(shape, tmp_path):
    path = tmp_path / "m.safetensors"
    packed = write_random_packed(path, seed=len(shape), **SHAPES[shape])
    pictures = random_pictures(packed.architecture, 5, seed=1)
    expected = ReferenceModel(packed).embed(pictures)
    assert expected.shape == (5, len(packed.architecture.heads) * packed.architecture.embed_dim)
    assert len({row.tobytes() for row in expected}) == 5
    for backend in BACKENDS:
        for threads in (1, 2):
            native = load(path, threads=threads, backend=backend)
            assert native.embed(pictures).tobytes() == expected.tobytes()
            assert native.embed(pictures[3]).tobytes() == expected[3].tobytes()


def test_the_head_makes_the_logits_of_the_features(tmp_path):
    """The features are what the heads read: docs/numerics.md's last step, done on them, ends in the logits."""
    packed = write_random_packed(tmp_path / "m.safetensors", seed=9, **SHAPES["two_heads"])
    pictures = random_pictures(packed.architecture, 3)
    model = load(tmp_path / "m.safetensors", engine="reference")
    tokens = model.embed(pictures).reshape(3, 2, packed.architecture.embed_dim)
    found = []
    for head in range(2):
        part = {name: packed[f"heads.{head}.{name}"] for name in ("shift", "input_scale", "weight", "scale", "bias")}
        levels = np.clip(np.rint((tokens[:, head] + part["shift"]) / part["input_scale"]), -128, 127)
        sums = levels.astype(np.int64) @ part["weight"].astype(np.int64).T
        found.append(sums.astype(np.float32) * part["scale"] + part["bias"])
    assert ((found[0] + found[1]) * np.float32(0.5)).tobytes() == model.logits(pictures).tobytes()


def test_repr_says_what_the_model_is(model, tiny):
    text = repr(model)
    assert re.fullmatch(r"<Classifier random_0, 1 block of width 32; 4 classes \(.*\); 16 × 16 pixels; .*>", text)
    assert "class 0, class 1, class 2, class 3" not in text or "more" not in text
    assert model.backend in text and "\n" not in text


def test_the_html_card_escapes_names(model, tiny):
    names = ("<script>alert(1)</script>", *model.class_names[1:])
    classifier = load(tiny, engine="reference")
    classifier.class_names = names
    html = classifier._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert html.count("<tr>") == 4 and read(tiny).architecture.name in html
