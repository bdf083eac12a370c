"""Prediction on Ray Data: each batch as the classifier answers it, and a local cluster where Ray is installed."""

import io
import os
import sys

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from random_packed import random_packed

import gsb_vit
from gsb_vit.decision import Decision, Unknown
from gsb_vit.errors import InputError
from gsb_vit.runtime.packed_file import write
from gsb_vit.runtime.ray_data import BatchPredictor, ray_predict


@pytest.fixture
def model(tmp_path):
    shape = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_hidden": 40}
    write(tmp_path / "model.safetensors", random_packed(seed=4, num_classes=3, **shape))
    return gsb_vit.load(tmp_path / "model.safetensors", threads=1)


@pytest.fixture
def files(tmp_path):
    """Five pictures and one file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "9.png").write_text("no picture")
    return sorted(folder.iterdir())


def test_a_batch_gets_the_answers_of_the_classifier(model, files):
    batch = {
        "bytes": np.array([path.read_bytes() for path in files], dtype=object),
        "path": np.array(list(map(str, files))),
    }
    found = BatchPredictor(model)(batch)
    assert set(found) == {"path", "class", "probability", "error"} and list(found["path"]) == list(map(str, files))
    for path, name, probability in zip(files[:5], found["class"], found["probability"], strict=False):
        (best,) = model.predict(path, top=1)
        assert (name, probability) == (best.name, best.probability)
    assert found["class"][5] == "" and found["probability"][5] == 0 and "not a picture" in found["error"][5]
    assert list(found["error"][:5]) == [""] * 5


def test_arrays_and_paths_are_pictures_too(model, files):
    pixels = np.stack([np.asarray(Image.open(path)) for path in files[:5]])
    wanted = BatchPredictor(model, "path")({"path": np.array(list(map(str, files[:5])))})
    assert np.array_equal(BatchPredictor(model, "image")({"image": pixels})["class"], wanted["class"])


def test_a_missing_column_is_named(model):
    with pytest.raises(InputError, match="there is no column 'bytes'; there are image, path"):
        BatchPredictor(model)({"path": np.array([]), "image": np.array([])})


def test_unknown_pictures_get_no_class(model):
    with pytest.raises(InputError, match="no threshold"):
        BatchPredictor(model, unknown=True)
    model.decision = Decision(1.0, Unknown("max_logit", 1e9, 0.05))
    data = io.BytesIO()
    Image.new("RGB", (9, 9)).save(data, "png")
    found = BatchPredictor(model, unknown=True)({"bytes": np.array([data.getvalue()], dtype=object)})
    assert (found["class"][0], found["error"][0]) == ("", "")


def test_without_ray_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'gsb-vit\[ray\]'"):
        ray_predict(None, model)


# A local cluster takes seconds to start.
@pytest.mark.slow
def test_a_local_cluster_answers_as_one_process_does(model, files, monkeypatch):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    try:
        with pytest.raises(InputError, match="a list is no data set of Ray"):
            ray_predict([], model)
        dataset = ray.data.read_binary_files([str(path) for path in files], include_paths=True)
        with pytest.raises(InputError, match="workers 0 must be"):
            ray_predict(dataset, model, workers=0)
        rows = sorted(ray_predict(dataset, model, workers=1, batch_size=2).take_all(), key=lambda row: row["path"])
    finally:
        ray.shutdown()
    assert [row["path"] for row in rows] == [str(path) for path in files]
    assert [row["class"] for row in rows[:5]] == [model.predict(path, top=1)[0].name for path in files[:5]]
    assert rows[5]["class"] == "" and "not a picture" in rows[5]["error"] and "bytes" not in rows[0]
