"""A loaded model in other processes: forked, also while it is busy, spawned, pickled, copied; and its file replaced."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from paths import SOURCE
from processes import HANG_SECONDS
from random_packed import random_pictures, write_random_packed

import gsb_vit
from gsb_vit.errors import InputError

pytest.importorskip("gsb_vit._native")
SHAPE = dict(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=128, num_classes=7)

# A child that inherits a model drops it, uses it, or loads it anew. Forked while threads predict, it finds their locks
# taken and the pool's threads gone. Each child has to end by itself.
CHILDREN = """
import multiprocessing, sys, threading
import numpy as np
import gsb_vit

method, path, pictures, busy = sys.argv[1], sys.argv[2], np.load(sys.argv[3]), sys.argv[4] == "busy"

def use(model, expected):
    assert np.array_equal(model.logits(pictures), expected)
    assert np.array_equal(model.logits(pictures[:1]), expected[:1])

def drop(model, expected):
    del model

def reload(model, expected):
    assert np.array_equal(gsb_vit.load(path, threads=2).logits(pictures), expected)

def together(model, expected):
    threads = [threading.Thread(target=use, args=(model, expected)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

if __name__ == "__main__":
    model = gsb_vit.load(path, threads=2)
    expected = model.logits(pictures)
    stop = threading.Event()
    def predict():
        while not stop.is_set():
            model.logits(pictures)
    if busy:
        neighbour = threading.Thread(target=predict)
        neighbour.start()
    context = multiprocessing.get_context(method)
    for target in (use, drop, reload, together):
        for _ in range(3 if method == "fork" else 1):
            child = context.Process(target=target, args=(model, expected))
            child.start()
            child.join()
            print(target.__name__, child.exitcode)
    stop.set()
    use(model, expected)
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "model.safetensors"
    model = write_random_packed(path, seed=4, **SHAPE)
    return path, random_pictures(model.architecture, 5)


@pytest.mark.parametrize(
    ("method", "busy"), [("fork", "idle"), ("fork", "busy"), ("spawn", "idle"), ("forkserver", "idle")]
)
def test_children_use_drop_and_reload_a_model(packed, method, busy, tmp_path):
    path, pictures = packed
    script, file = tmp_path / "children.py", tmp_path / "pictures.npy"
    script.write_text(CHILDREN)
    np.save(file, pictures)
    command = [sys.executable, "-W", "ignore", str(script), method, str(path), str(file), busy]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    rounds = 3 if method == "fork" else 1
    assert done.stdout.split("\n")[:-1] == [
        f"{t} 0" for t in ("use", "drop", "reload", "together") for _ in range(rounds)
    ]


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_pickles_and_copies_answer_alike(packed, engine):
    path, pictures = packed
    model = gsb_vit.load(path, threads=2, engine=engine)
    expected = model.logits(pictures)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert np.array_equal(other.logits(pictures), expected)
        assert (other.class_names, other.backend, other.threads) == (model.class_names, model.backend, model.threads)
        assert other.predict(pictures[0], top=2) == model.predict(pictures[0], top=2)


def test_a_pickle_keeps_what_was_asked_for(packed):
    path, pictures = packed
    model = gsb_vit.load(path, threads=1, backend="portable")
    other = pickle.loads(pickle.dumps(model))
    assert (other.backend, other.threads) == ("portable", 1)
    assert np.array_equal(other.logits(pictures), model.logits(pictures))


def test_a_damaged_pickle_is_refused(packed):
    path, _ = packed
    state = bytearray(pickle.dumps(gsb_vit.load(path)))
    state[state.index(b"qkv.weight")] ^= 1
    with pytest.raises(ValueError, match=r"^a pickled model: .*xxh64"):
        pickle.loads(bytes(state))


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_what_becomes_of_the_file_changes_nothing(packed, engine, tmp_path):
    path, pictures = packed
    own = tmp_path / "model.safetensors"
    own.write_bytes(path.read_bytes())
    model = gsb_vit.load(own, engine=engine)
    expected = model.logits(pictures)
    size = own.stat().st_size
    with own.open("r+b") as file:  # in place: other weights under the same name, then nothing
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert np.array_equal(model.logits(pictures), expected)
    own.write_bytes(b"")
    assert np.array_equal(model.logits(pictures), expected)
    with pytest.raises(InputError, match="has 0 bytes"):
        gsb_vit.load(own, engine=engine)


def test_threads_of_one_process_share_a_model(packed):
    path, pictures = packed
    model = gsb_vit.load(path, threads=2)
    expected, wrong = model.logits(pictures), []

    def predict():
        for _ in range(200):
            if not np.array_equal(model.logits(pictures), expected):
                wrong.append(1)

    threads = [threading.Thread(target=predict) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
