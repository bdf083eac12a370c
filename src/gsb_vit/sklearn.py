"""A classifier of arrays of pictures with scikit-learn's conventions; needs scikit-learn (the extra ``sklearn``)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gsb_vit.data.class_names import class_name
from gsb_vit.data.folder import is_hidden
from gsb_vit.data.pictures import open_picture
from gsb_vit.data.splits import stratified_split
from gsb_vit.errors import InputError
from gsb_vit.runs import Run, fit
from gsb_vit.terminal import plain_console

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    message = "GSBClassifier needs scikit-learn of version 1.6 or later: pip install 'gsb-vit[sklearn]'"
    raise ImportError(message, name="sklearn") from error

_STAGES = ("teacher", "twin", "stage1", "stage2")


class GSBClassifier(ClassifierMixin, BaseEstimator):
    """Train a one-bit vision transformer on arrays of pictures and classify others with its packed model.

    X is (n, H, W), (n, H, W, 1), (n, H, W, 3) or (n, H, W, 4), uint8 or uint16: greyscale, RGB or RGBA, of any size.
    y holds n labels, numbers or text. :meth:`fit` needs the extra ``train``, prediction does not: a fitted estimator
    can be pickled, and holds the packed model only.

    Args:
        recipe: a TOML file, or the name of a recipe that comes with the package.
        settings: values of the recipe to change, by dotted key, as in :func:`gsb_vit.fit`.
        test_fraction: the share of each class, at least one picture, that :meth:`fit` does not train on. The packed
            model is checked on it, and ``run_test_`` is measured on it. Every stage keeps its last epoch: there is
            no selection on these pictures.
        random_state: the seed of the split and of training; None draws one.
        out: a new or empty folder that keeps the run and its pictures; None keeps neither.
        engine: what runs the packed model: ``native``, or ``reference`` where the extension is not built.
        threads: of the native engine; 0 takes all cores.
        verbose: whether :meth:`fit` shows its progress.

    Attributes:
        classes_: the labels, sorted (K).
        model_: the packed model, a :class:`gsb_vit.Classifier`; its classes are in an order of their own.
        run_test_: metrics on the pictures that ``test_fraction`` set apart.
    """

    def __init__(
        self,
        recipe: str = "default",
        settings: Mapping[str, Any] | None = None,
        *,
        test_fraction: float = 0.1,
        random_state: int | np.random.RandomState | None = 0,
        out: str | Path | None = None,
        engine: str = "native",
        threads: int = 0,
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.settings = settings
        self.test_fraction = test_fraction
        self.random_state = random_state
        self.out = out
        self.engine = engine
        self.threads = threads
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> GSBClassifier:
        """Train on pictures X (n, H, W) or (n, H, W, C) with labels y (n), and return the estimator.

        Raises:
            InputError: X holds no pictures, a class has fewer than two, or there are fewer than two classes; and as
                :func:`gsb_vit.fit`. It is a ValueError.
            ValueError: y is missing, of another length, or no labels of classes.
        """
        if y is None:
            raise InputError("requires y to be passed, but the target y is None; give a label for every picture")
        pictures = _pictures(X)
        labels = column_or_1d(y, warn=True)
        check_consistent_length(pictures, labels)
        check_classification_targets(labels)
        classes, numbers = np.unique(labels, return_inverse=True)
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31 - 1)
        trained, tested = self._split(classes, numbers, int(seed))
        names = _folder_names(classes)
        with tempfile.TemporaryDirectory(prefix="gsb-vit-fit-") as temporary:
            folder = Path(temporary) if self.out is None else Path(self.out)
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise InputError(f"{folder} exists and is not empty; give another folder as out")
            for split, indices in (("train", trained), ("test", tested)):
                _write(folder / "pictures" / split, pictures, [names[k] for k in numbers], indices)
            settings = {
                "seed": int(seed),
                "data.validation_fraction": 0.0,
                **{f"{stage}.select": "last" for stage in _STAGES},
                **(self.settings or {}),
            }
            console = plain_console(quiet=not self.verbose)
            run: Run = fit(
                folder / "pictures", out=folder / "run", recipe=self.recipe, settings=settings, console=console
            )
            self.model_ = run.model(engine=self.engine, threads=self.threads)
            self.run_test_ = run.test
        self.classes_ = classes
        self._columns = [self.model_.class_names.index(name) for name in names]
        return self

    def _split(self, classes: NDArray[Any], numbers: NDArray[Any], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
        fraction = self.test_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
            raise InputError(f"test_fraction {fraction!r} must be from 0 to below 1")
        if len(classes) < 2:
            raise InputError(f"y holds {len(classes)} class; a classifier can't train on fewer than two")
        counts = np.bincount(numbers)
        if counts.min() < 2:
            raise InputError(f"class {classes[counts.argmin()]!s} has one picture; give at least two, one is set apart")
        generator = np.random.default_rng(seed)
        trained, tested = stratified_split(numbers, fraction, generator)
        missing = np.setdiff1d(np.arange(len(classes)), numbers[tested])
        more = [generator.choice(np.flatnonzero(numbers == label)) for label in missing]
        tested = np.sort(np.concatenate([tested, np.array(more, dtype=tested.dtype)]))
        return np.setdiff1d(trained, tested), tested

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each of ``classes_`` for pictures X: (n, K)."""
        check_is_fitted(self)
        return self.model_.predict_proba(_pictures(X))[:, self._columns]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most likely label for pictures X: (n)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


def _pictures(X: ArrayLike) -> NDArray[Any]:
    """X as an array (n, H, W, C). Raises InputError where it is none."""
    array = np.asarray(X)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4) or array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"X of shape {np.shape(X)} and type {array.dtype} are not pictures; give uint8 or uint16 of shape "
            "(n, H, W), (n, H, W, 1), (n, H, W, 3) or (n, H, W, 4)"
        )
    return array


def _folder_names(classes: NDArray[Any]) -> list[str]:
    """A folder's name for each class: its label, unless a file system would not keep the labels apart."""
    names = [str(label) for label in classes]
    plain = all(re.fullmatch(r"\w[\w .-]{0,99}", name) and _is_folder(name) for name in names)
    if plain and len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{number:05d}" for number in range(len(names))]


def _is_folder(name: str) -> bool:
    """Whether a class's folder may be called so: every system takes it as it is, and it is read as that class."""
    return name == name.rstrip(" .") and name == class_name(name) and is_hidden(name) is None


def _write(folder: Path, pictures: NDArray[Any], names: list[str], indices: NDArray[Any]) -> None:
    """Write pictures as PNG, which loses nothing, into folders named after their classes."""
    for index in indices:
        place = folder / names[index]
        place.mkdir(parents=True, exist_ok=True)
        open_picture(pictures[index]).save(place / f"{index:08d}.png", compress_level=1)
