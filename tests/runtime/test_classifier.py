"""The runtime against the NumPy reference, bit for bit, on every backend; and what it says to bad input."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_packed import sealed, version_1
from needs import needs
from PIL import Image
from processes import threads_of, wait_for_sleep
from random_packed import SHAPES, TINY, random_pictures, write_random_packed
from safetensors.numpy import load_file, save_file

import gsb_vit
from gsb_vit.decision import Decision, Unknown, unknown_scores
from gsb_vit.errors import InputError
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import read, write
from gsb_vit.runtime.reference import ReferenceModel

_native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")


@pytest.fixture(params=_native.backends())
def backend(request):
    return request.param


@pytest.fixture(scope="module", params=SHAPES)
def packed(request, tmp_path_factory):
    """A random packed file, five pictures, and the reference's logits."""
    path = tmp_path_factory.mktemp("packed") / f"{request.param}.safetensors"
    model = write_random_packed(path, seed=len(request.param), **SHAPES[request.param])
    pictures = random_pictures(model.architecture, 5, seed=1)
    return path, pictures, ReferenceModel(model).logits(pictures)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "tiny.safetensors"
    write_random_packed(path, seed=0, **TINY)
    return path


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_logits_are_those_of_the_reference_bit_for_bit(packed, backend, threads):
    path, pictures, expected = packed
    model = _native.Model(str(path), threads, backend)
    assert (model.backend, model.threads) == (backend, threads)
    assert model.logits(pictures).tobytes() == expected.tobytes()
    # Alone, and again: nothing of an earlier picture is left behind.
    for picture, logits in zip(pictures[::-1], expected[::-1], strict=True):
        assert model.logits(picture[None]).tobytes() == logits.tobytes()


def test_every_row_again_when_candidates_do_not_fit(tmp_path, backend):
    """No bias and one score for all: every entry belongs to every group, far more than is kept."""
    shape = dict(SHAPES["two_heads"], attention_bias="none", image_size=64)
    model = write_random_packed(tmp_path / "m.safetensors", seed=3, **shape)
    tensors = {name: np.array(array) for name, array in model.tensors.items()}
    for block in range(2):
        tensors[f"blocks.{block}.attn.qkv.threshold"][:128] = 64  # every query and key bit is 1
    write_changed(tmp_path / "m.safetensors", tensors=tensors)
    pictures = random_pictures(model.architecture, 2, seed=0)
    expected = ReferenceModel(read(tmp_path / "m.safetensors")).logits(pictures)
    for threads in (1, 2):
        assert _native.Model(str(tmp_path / "m.safetensors"), threads, backend).logits(pictures).tobytes() == (
            expected.tobytes()
        )


def test_attention_below_zero_has_empty_groups(tmp_path, backend):
    model = write_random_packed(tmp_path / "m.safetensors", seed=4, **SHAPES["two_heads"])
    tensors = {name: np.array(array) for name, array in model.tensors.items()}
    for block in range(2):
        tensors[f"blocks.{block}.attn.bias"] -= 2
    write_changed(tmp_path / "m.safetensors", tensors=tensors)
    pictures = random_pictures(model.architecture, 2, seed=0)
    expected = ReferenceModel(read(tmp_path / "m.safetensors")).logits(pictures)
    assert _native.Model(str(tmp_path / "m.safetensors"), 1, backend).logits(pictures).tobytes() == expected.tobytes()


def test_classifier(tiny):
    native, reference = load(tiny, threads=1), gsb_vit.load(tiny, engine="reference")
    pictures = random_pictures(native.architecture, 3)
    assert native.logits(pictures).tobytes() == reference.logits(pictures).tobytes()
    assert native.logits(pictures[:0]).shape == (0, 4)
    assert native.architecture == reference.architecture
    assert native.class_names == reference.class_names == ("class 0", "class 1", "class 2", "class 3")
    assert native.preprocessing == reference.preprocessing
    assert native.backend == _native.backends()[0]
    assert reference.backend == "reference"


def test_predict_names_classes_of_files_arrays_and_lists(tiny, tmp_path):
    model = load(tiny, threads=1)
    picture = random_pictures(model.architecture, 1)[0]
    Image.fromarray(picture).save(tmp_path / "picture.png")
    best = model.predict(tmp_path / "picture.png", top=2)
    logits = model.logits(picture[None])[0].astype(np.float64)
    powers = np.exp(logits - logits.max())
    order = np.argsort(-powers)
    assert [prediction.name for prediction in best] == [f"class {k}" for k in order[:2]]
    assert best[0].probability == pytest.approx(powers[order[0]] / powers.sum())
    assert model.predict(picture, top=2) == best
    assert model.predict(Image.fromarray(picture), top=2) == best
    assert model.predict([picture, str(tmp_path / "picture.png")], top=2) == [best, best]
    assert model.predict([]) == []
    everything = model.predict(picture, top=99)
    assert len(everything) == 4
    assert sum(prediction.probability for prediction in everything) == pytest.approx(1)


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """A packed file with a temperature and a threshold between its pictures' scores; pictures; their logits."""
    path = tmp_path_factory.mktemp("decided") / "model.safetensors"
    packed = write_random_packed(path, seed=4, **TINY)
    pictures = random_pictures(packed.architecture, 6, seed=2)
    logits = ReferenceModel(packed).logits(pictures)
    threshold = float(np.sort(unknown_scores(logits, "energy", 2.5))[3])
    write(path, replace(packed, decision=Decision(2.5, Unknown("energy", threshold, 0.25))))
    return path, pictures, logits


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_probabilities_are_tempered_and_logits_are_not(decided, engine):
    path, pictures, logits = decided
    model = load(path, engine=engine, threads=1)
    assert model.logits(pictures).tobytes() == logits.tobytes()
    assert pickle.loads(pickle.dumps(model)).decision == model.decision == read(path).decision
    powers = np.exp(logits.astype(np.float64) / 2.5)
    expected = powers / powers.sum(axis=1, keepdims=True)
    found = model.predict_proba(pictures)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.tobytes() == load(path, engine="reference").predict_proba(pictures).tobytes()
    best = model.predict(pictures[0], top=1)[0]
    assert best.name == model.class_names[logits[0].argmax()] and best.probability == found[0].max()


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_pictures_of_no_class_get_no_answer(decided, engine):
    path, pictures, logits = decided
    model = load(path, engine=engine, threads=1)
    energy = 2.5 * np.log(np.exp(logits.astype(np.float64) / 2.5).sum(axis=1))
    order = np.argsort(energy)
    answers = model.predict(pictures, top=2, unknown=True)
    assert [len(answers[k]) for k in order] == [0, 0, 0, 2, 2, 2]  # equal to the threshold is known
    assert list(model.predict(iter(pictures), top=2, unknown=True)) == answers
    assert model.predict(pictures[order[0]], unknown=True) == []
    known = model.predict(pictures, top=2)
    assert all(len(one) == 2 for one in known) and answers[order[5]] == known[order[5]]


def test_a_file_without_a_threshold_says_so(tiny):
    model = load(tiny, threads=1)
    assert model.decision == Decision()
    with pytest.raises(InputError, match="no threshold for unknown pictures; export its run again"):
        model.predict([], unknown=True)


def test_threads_can_share_a_model(tiny):
    from concurrent.futures import ThreadPoolExecutor

    model = load(tiny, threads=2)
    pictures = random_pictures(model.architecture, 6)
    expected = model.logits(pictures).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: model.logits(pictures).tobytes(), range(16))) == {expected}


@needs("sleeping threads", "/proc", Path("/proc/self/task").exists())
def test_idle_threads_sleep(tiny):
    before = threads_of()
    model = load(tiny, threads=3)
    assert threads_of() == before  # threads start with the first call
    for _ in range(2):
        model.logits(random_pictures(model.architecture, 6))
        own = threads_of() - before
        assert len(own) == 2  # the calling thread works, too
        wait_for_sleep("self", own)


def test_profile_counts_stages(tiny):
    model = load(tiny, threads=1)
    assert all(stage.seconds == 0 for stage in model.profile())
    model.set_profiling(True)
    model.logits(random_pictures(model.architecture, 4))
    stages = {stage.name: stage for stage in model.profile()}
    assert all(stage.seconds > 0 for stage in stages.values())
    assert stages["qkv"].bit_macs == 4 * 6 * 32 * 96
    assert stages["patch embedding"].byte_macs == 4 * 4 * 32 * 192
    with pytest.raises(InputError, match="reference engine has no profile"):
        load(tiny, engine="reference").profile()


@pytest.mark.parametrize(
    ("pictures", "what"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "float32"),
        (np.zeros((16, 16, 3), np.uint8), r"\(16, 16, 3\)"),
        (np.zeros((1, 16, 17, 3), np.uint8), r"uint8 \(B, 16, 16, 3\)"),
        ([[1]], "list"),
    ],
)
def test_logits_refuses_other_arrays(tiny, pictures, what):
    with pytest.raises(InputError, match=what):
        load(tiny, threads=1).logits(pictures)


def test_strided_pictures_are_copied(tiny):
    model = load(tiny, threads=1)
    pictures = random_pictures(model.architecture, 4)
    assert model.logits(pictures[::2]).tobytes() == model.logits(pictures[::2].copy()).tobytes()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (dict(engine="cuda"), "engine 'cuda' is unknown"),
        (dict(threads=-1), "threads -1"),
        (dict(threads=1.5), "threads 1.5"),
        (dict(threads=9999), "threads 9999"),
    ],
)
def test_load_refuses_arguments(tiny, arguments, what):
    with pytest.raises(InputError, match=what):
        load(tiny, **arguments)


@pytest.mark.parametrize("top", [0, -1, 1.5, True])
def test_predict_refuses_top(tiny, top):
    with pytest.raises(InputError, match="top"):
        load(tiny, threads=1).predict(np.zeros((16, 16, 3), np.uint8), top=top)


def test_the_environment_forces_a_backend(tiny):
    code = f"import gsb_vit; print(gsb_vit.load({str(tiny)!r}).backend)"
    for name in _native.backends():
        done = run_python(code, GSB_VIT_BACKEND=name)
        assert done.stdout.strip() == name
    done = run_python(code, GSB_VIT_BACKEND="avx9")
    assert "GSB_VIT_BACKEND 'avx9' cannot run on this machine; there is" in done.stderr
    assert "portable" in done.stderr.splitlines()[-1]


def test_without_the_extension_load_says_how_to_get_it(tiny):
    code = (
        "import sys; sys.modules['gsb_vit._native'] = None\n"
        f"import gsb_vit\nprint(gsb_vit.load({str(tiny)!r}, engine='reference').backend)\ngsb_vit.load({str(tiny)!r})"
    )
    done = run_python(code)
    assert done.stdout.strip() == "reference"
    assert 'pip install .`, run `make native` in a checkout, or use engine="reference"' in done.stderr


def run_python(code, **environment):
    import os

    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=inherited)


def write_changed(path, *, tensors=None, metadata=None, source=None):
    """Write a packed file again with other tensors or metadata and fitting checksums, past the writer's own checks."""
    source = source or path
    from safetensors import safe_open

    with safe_open(str(source), "numpy") as file:
        texts = file.metadata()
    if metadata:
        metadata(texts)
    save_file(tensors if tensors is not None else load_file(source), str(path), texts)
    Path(path).write_bytes(sealed(Path(path).read_bytes()))


def model_json(change):
    """A change of the metadata's model object."""

    def apply(texts):
        model = json.loads(texts["model"])
        change(model)
        texts["model"] = json.dumps(model)

    return apply


HOSTILE_METADATA = {
    "another format": (lambda t: t.update(format="other"), "not a packed model"),
    "a newer version": (lambda t: t.update(version="3"), "version '3' is unknown"),
    "no model": (lambda t: t.pop("model"), "metadata"),
    "broken JSON": (lambda t: t.update(model="{"), "not JSON"),
    "deep JSON": (lambda t: t.update(model="[" * 100000), "too deeply nested"),
    "no architecture": (model_json(lambda m: m.pop("architecture")), "'architecture' is missing"),
    "an unknown key": (model_json(lambda m: m["architecture"].update(x=1)), "unknown key"),
    "a key missing": (model_json(lambda m: m["architecture"].pop("depth")), "'depth' is missing"),
    "a fraction": (model_json(lambda m: m["architecture"].update(depth=1.5)), "depth must be a whole number"),
    "zero heads": (model_json(lambda m: m["architecture"].update(num_heads=0)), "num_heads"),
    "three heads": (model_json(lambda m: m["architecture"].update(num_heads=3)), "no multiple of num_heads"),
    "a huge width": (model_json(lambda m: m["architecture"].update(embed_dim=10**9)), "embed_dim"),
    "another width": (model_json(lambda m: m["architecture"].update(embed_dim=64)), r"tensor .* is .*, not "),
    "more blocks": (model_json(lambda m: m["architecture"].update(depth=2)), "blocks.1.* is missing"),
    "a scope": (model_json(lambda m: m["architecture"].update(threshold_scope="batch")), "'batch' is unknown"),
    "another bias": (model_json(lambda m: m["architecture"].update(attention_bias="none")), "does not belong"),
    "thresholds fall": (
        model_json(lambda m: m["architecture"].update(attention_thresholds=[0.9, 0.7])),
        "attention_thresholds must increase",
    ),
    "names": (model_json(lambda m: m.update(class_names=["a"])), "1 names for 4 classes"),
    "a name that is none": (model_json(lambda m: m.update(class_names=[1, 2, 3, 4])), "class name must be text"),
    "preprocessing": (model_json(lambda m: m["preprocessing"].update(size=[8, 8])), "pictures of"),
}


@pytest.mark.parametrize("case", HOSTILE_METADATA)
def test_hostile_metadata_is_refused(tiny, tmp_path, case):
    change, what = HOSTILE_METADATA[case]
    path = tmp_path / "hostile.safetensors"
    write_changed(path, source=tiny, metadata=change)
    with pytest.raises(InputError, match=what) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def put(name, index, value):
    def apply(tensors):
        tensors[name].reshape(-1)[index] = value

    return apply


HOSTILE_TENSORS = {
    "pad bits": (put("blocks.0.mlp.fc2.weight", 0, np.uint64(2**63)), "fc2.weight has pad bits"),
    "not finite": (put("norm.weight", 3, np.inf), "norm.weight holds numbers that are not finite"),
    "NaN": (put("blocks.0.attn.bias", 3, np.nan), "attn.bias holds numbers that are not finite"),
    "threshold": (put("blocks.0.attn.qkv.threshold", 0, 33), "values outside -1 ... 32"),
    "interval": (put("blocks.0.mlp.fc1.zero_interval", 0, -7), "values outside 0 ... 32"),
    "rising table": (put("blocks.0.attn.exp_table", 2, 2), "does not fall from 1"),
    "input scale": (put("heads.0.input_scale", 0, 0), "input_scale is not above 0"),
    "half scale": (put("blocks.0.attn.attention_half_scale", 0, -1), "half_scale is not above 0"),
    "missing": (lambda t: t.pop("norm.bias"), "norm.bias is missing"),
    "extra": (lambda t: t.update(extra=np.zeros(1, np.float32)), "does not belong"),
    "type": (lambda t: t.update({"norm.bias": np.zeros(32, np.float64)}), "norm.bias is F64"),
    "shape": (lambda t: t.update({"norm.bias": np.zeros((32, 1), np.float32)}), "norm.bias is F32"),
}


@pytest.mark.parametrize("case", HOSTILE_TENSORS)
def test_hostile_tensors_are_refused(tiny, tmp_path, case):
    change, what = HOSTILE_TENSORS[case]
    tensors = load_file(tiny)
    change(tensors)
    write_changed(tmp_path / "hostile.safetensors", source=tiny, tensors=tensors)
    with pytest.raises(InputError, match=what):
        load(tmp_path / "hostile.safetensors")


def test_files_that_are_none(tmp_path):
    (tmp_path / "text").write_text("not a model, but long enough to hold a length")
    (tmp_path / "empty").write_bytes(b"")
    for path, what in [
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty", "has 0 bytes"),
        (tmp_path / "text", "not a packed model, or truncated"),
    ]:
        with pytest.raises(InputError, match=what) as error:
            load(path)
        assert str(error.value).startswith(str(path))


def test_a_truncated_file_is_refused_wherever_it_ends(tiny, tmp_path):
    data = tiny.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(data), 991), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(InputError):
            load(tmp_path / "cut")


def test_a_damaged_header_gives_an_error_or_a_model_that_runs(tiny, tmp_path):
    """Seeded damage to the header's bytes: whatever is loaded must run without touching memory that is not its own."""
    data = bytearray(version_1(tiny.read_bytes()))  # without checksums, which would find all of it
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            damaged[at] = rng.choice(np.frombuffer(b'0123456789[]{}",:\\ \x00\xffeE-', np.uint8))
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            model = _native.Model(str(tmp_path / "damaged"), 1)
        except _native.NativeError:
            refused += 1
            continue
        side = json.loads(model.header)["architecture"]["image_size"]
        model.logits(np.zeros((1, *side, 3), np.uint8))
    assert refused > 200
