"""GSBClassifier keeps scikit-learn's conventions: its checks, cross_val_score, Pipeline, clone, pickle."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("accelerate")
pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from gsb_vit import GSBClassifier, Run
from gsb_vit.errors import InputError

SMALL = {
    "model.depth": 1,
    "model.embed_dim": 32,
    "model.num_heads": 2,
    "model.img_size": 16,
    "model.patch_size": 4,
    "augment.policy": "none",
    "threads": 1,
    "teacher.source": "none",
    "teacher.epochs": 0,
    "stage1.epochs": 0,
    "stage2.epochs": 1,
    "stage2.batch_size": 32,
    "stage2.warmup_epochs": 0,
}


def small(**settings):
    return GSBClassifier("quickstart", {**SMALL, **settings}, engine="reference")


def halves(count, seed=0):
    """Noise (n, 12, 10) whose upper or lower half is bright, and which."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 120, (count, 12, 10), dtype=np.uint8)
    upper = np.arange(count) % 2 == 0
    pictures[upper, :6] += 120
    pictures[~upper, 6:] += 120
    return pictures, np.where(upper, "upper", "lower")


class RowsOfNumbers(GSBClassifier):
    """The classifier behind scikit-learn's checks, which know no pictures: a row of numbers becomes grey columns."""

    def __init__(self, random_state=0):
        super().__init__("quickstart", random_state=random_state, engine="reference")

    def fit(self, X, y):
        if y is not None:
            X, y = validate_data(self, X, y)
        self.settings = SMALL
        try:
            return super().fit(grey(X), y)
        finally:
            self.settings = None

    def predict_proba(self, X):
        check_is_fitted(self)
        return super().predict_proba(grey(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.classifier_tags.poor_score = True  # one epoch
        return tags


def grey(rows):
    values = np.clip(np.asarray(rows, dtype=float) * 32 + 128, 0, 255).astype(np.uint8)
    return np.repeat(values[:, None, :8], 8, axis=1).repeat(2, axis=2)


@parametrize_with_checks([RowsOfNumbers()])
def test_scikit_learns_checks_of_an_estimator(estimator, check):
    check(estimator)


WITHOUT_DATA = [
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimators_unfitted",
    "check_requires_y_none",
]


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_scikit_learns_checks_without_rows_of_numbers(name):
    """check_estimator() leaves out estimators of arrays that are no rows; those checks that need no rows hold as is."""
    getattr(estimator_checks, name)("GSBClassifier", GSBClassifier())


@pytest.fixture(scope="module")
def fitted():
    """Trained on labels whose order as text, and so in the packed model, is not their own: 10 is "10" < "2"."""
    pictures, labels = halves(80)
    return small(**{"stage2.epochs": 25, "stage2.batch_size": 8}).fit(pictures, numbered(labels))


def numbered(labels):
    return np.where(labels == "upper", 10, 2)


def test_it_learns_and_scores(fitted):
    pictures, labels = halves(40, seed=1)
    assert is_classifier(fitted) and fitted.classes_.tolist() == [2, 10]
    assert fitted.model_.class_names == ("10", "2")
    assert fitted.score(pictures, numbered(labels)) > 0.9
    probabilities = fitted.predict_proba(pictures)
    assert probabilities.shape == (40, 2) and probabilities.sum(axis=1) == pytest.approx(1)
    assert fitted.predict(pictures).tolist() == fitted.classes_[probabilities.argmax(axis=1)].tolist()
    assert fitted.run_test_["n"] == 8
    coloured = np.repeat(pictures[..., None], 3, axis=-1)
    for same in (coloured, pictures[..., None], pictures.astype(np.uint16) * 257, list(pictures)):
        assert fitted.predict_proba(same) == pytest.approx(probabilities)


def test_a_fitted_estimator_is_pickled_and_cloned(fitted):
    pictures, _ = halves(6, seed=2)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict_proba(pictures).tobytes() == fitted.predict_proba(pictures).tobytes()
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(pictures)
    assert clone(fitted).set_params(threads=2, recipe="default").get_params()["threads"] == 2


def test_cross_val_score():
    pictures, labels = halves(40)
    scores = cross_val_score(small(), pictures, labels, cv=2, error_score="raise")
    assert scores.shape == (2,) and ((scores >= 0) & (scores <= 1)).all()


def as_pictures(rows):
    return np.rint(np.asarray(rows).reshape(-1, 12, 10) * 255).astype(np.uint8)


def test_a_pipeline_of_flat_rows():
    pictures, labels = halves(24)
    rows = pictures.reshape(24, -1) / 255
    pipeline = make_pipeline(FunctionTransformer(as_pictures), small())
    pipeline.set_params(gsbclassifier__random_state=3).fit(rows, labels)
    assert pipeline.predict_proba(rows) == pytest.approx(small().set_params(random_state=3).fit(pictures, labels)
                                                         .predict_proba(pictures))  # fmt: skip


LABELS = {
    "numbers whose text sorts otherwise": [2, 10, 1],
    "text that is no folder's name": ["a/b", "..", ""],
    "text that differs in case": ["Rose", "rose", "ROSE"],
    "text": ["wild rose", "daisy", "tulip 2.5"],
}


@pytest.mark.parametrize("name", LABELS)
def test_columns_follow_the_classes_whatever_the_labels(name):
    labels = np.array(LABELS[name])
    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    estimator = small().fit(pictures, labels[np.arange(24) % 3])
    assert estimator.classes_.tolist() == sorted(labels.tolist())
    probabilities = estimator.model_.predict_proba(pictures[..., None])
    classes = dict(zip(estimator.model_.class_names, probabilities.T, strict=True))
    columns = estimator.predict_proba(pictures).T
    for number, (label, column) in enumerate(zip(estimator.classes_, columns, strict=True)):
        own = classes[str(label)] if str(label) in classes else classes[f"{number:05d}"]
        assert column.tolist() == own.tolist()


def test_the_run_is_kept_where_it_is_wanted(tmp_path):
    estimator = small().set_params(out=tmp_path / "kept").fit(*halves(24))
    run = Run(tmp_path / "kept" / "run")
    assert run.test == estimator.run_test_ and len(list((tmp_path / "kept").rglob("*.png"))) == 24
    with pytest.raises(InputError, match="is not empty"):
        estimator.fit(*halves(24))


def test_training_is_silent_unless_it_is_asked_to_speak(capsys):
    small().fit(*halves(24))
    assert capsys.readouterr().out == ""
    small().set_params(verbose=True).fit(*halves(24))
    assert "training" in capsys.readouterr().out


PICTURES, NAMES = halves(8)


@pytest.mark.parametrize(
    ("pictures", "labels", "what"),
    [
        (PICTURES / 255, NAMES, "type float64 are not pictures; give uint8 or uint16"),
        (PICTURES[:, 0], NAMES, r"shape \(8, 10\)"),
        (PICTURES[..., None].repeat(2, -1), NAMES, r"shape \(8, 12, 10, 2\)"),
        (PICTURES[:, :0], NAMES, "is not a picture"),
        (PICTURES, NAMES[:7], "inconsistent numbers of samples"),
        (PICTURES, ["one"] * 8, "y holds 1 class"),
        (PICTURES, ["one", *["many"] * 7], "class one has one picture; give at least two"),
        (PICTURES, np.linspace(0, 1, 8), "Unknown label type"),
        (PICTURES, None, "requires y to be passed"),
    ],
    ids=lambda value: str(value)[:30].replace("\n", " ") if isinstance(value, str) else "",
)
def test_what_cannot_be_learned_from_is_refused(pictures, labels, what):
    with pytest.raises(ValueError, match=what) as error:
        small().fit(pictures, labels)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("fraction", [-0.1, 1, True, "half"])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(InputError, match="test_fraction"):
        small().set_params(test_fraction=fraction).fit(*halves(8))


def test_without_scikit_learn_it_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None\nimport gsb_vit\ngsb_vit.load\ngsb_vit.GSBClassifier"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment())
    assert done.returncode and "pip install 'gsb-vit[sklearn]'" in done.stderr.splitlines()[-1]


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_labels_that_no_folder_may_be_called_get_numbers() -> None:
    from gsb_vit.sklearn import _folder_names

    for odd in ("\u212b", "desktop.ini", "Thumbs.db", "__MACOSX", "a ", "e\u0301", "Cat", "a/b", "-"):
        assert _folder_names(np.array(["cat", odd])) == ["00000", "00001"]
    assert _folder_names(np.array(["cat", "\u00c5"])) == ["cat", "\u00c5"]
