"""Run a packed model: ``load`` one, then ask it for logits or for the names of what is in pictures."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.pictures import Picture
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError, ModelError, shown
from gsb_vit.files import as_path, open_regular
from gsb_vit.metrics import softmax

from .packed_file import read
from .reference import ReferenceModel, check_batch
from .schema import Architecture

ENGINES = ("native", "reference")
_UNDECODED = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Prediction:
    """A class and its probability, the softmax of the logits."""

    name: str
    probability: float


@dataclass(frozen=True)
class StageTime:
    """What one stage of the native forward pass took and did since profiling was switched on."""

    name: str
    seconds: float
    bit_macs: float
    byte_macs: float


class Classifier:
    """A packed model ready to run; made by :func:`load`.

    A picture's logits do not depend on its batch mates, the number of threads, the engine or the instruction set.
    Classifiers can be pickled and copied, as their file's bytes, and used in forked processes and from several threads.
    """

    def __init__(
        self,
        architecture: Architecture,
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        engine: Any,
        backend: str = "reference",
        threads: int = 1,
    ) -> None:
        self.architecture = architecture
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.backend = backend
        self.threads = threads
        self._engine = engine

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.backend != "reference":  # another machine may have chosen otherwise
            self.backend, self.threads = self._engine.backend, self._engine.threads

    def logits(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify uint8 (B, H, W, 3), made by ``preprocessing``: → float32 (B, K).

        Raises:
            InputError: for another shape or type; a ModelError where the model's numbers overflow.
        """
        if not isinstance(pictures, np.ndarray):
            raise InputError(f"a {type(pictures).__name__} is no batch; give an array, as Preprocessing makes them")
        check_batch(pictures, self.architecture.image_size)
        try:
            logits: NDArray[np.float32] = self._engine.logits(np.ascontiguousarray(pictures))
        except ValueError as error:  # the extension's own error, after the batch was checked: numbers that overflow
            raise ModelError(str(error)) from error
        return logits

    @overload
    def predict(self, picture: Picture, top: int = 5, *, max_pixels: int | None = None) -> list[Prediction]: ...
    @overload
    def predict(
        self, picture: list[Picture], top: int = 5, *, max_pixels: int | None = None
    ) -> list[list[Prediction]]: ...
    def predict(
        self, picture: Picture | list[Picture], top: int = 5, *, max_pixels: int | None = None
    ) -> list[Prediction] | list[list[Prediction]]:
        """Name the ``top`` most likely classes of a picture, best first; of a list of pictures, a list each.

        A picture is a path, a Pillow image or an array, as :func:`gsb_vit.data.pictures.open_picture` reads
        it; ``max_pixels`` is its limit. With fewer classes than ``top``, all are named; equal probabilities come in
        the order of the classes.

        Raises:
            InputError: for a picture that cannot be read, and for ``top`` below 1; a ModelError as :meth:`logits`.
        """
        if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or top < 1:
            raise InputError(f"top {shown(top)} must be a whole number of at least 1")
        if isinstance(picture, (list, tuple)):
            return self._predict(list(picture), int(top), max_pixels)
        return self._predict([picture], int(top), max_pixels)[0]

    def _predict(self, pictures: list[Picture], top: int, max_pixels: int | None) -> list[list[Prediction]]:
        if not pictures:
            return []
        pixels = [self.preprocessing(picture, max_pixels=max_pixels) for picture in pictures]
        probabilities = softmax(self.logits(np.stack(pixels)))
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [Prediction(self.class_names[k], float(row[k])) for k in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def set_profiling(self, on: bool) -> None:
        """Start profiling with all times at zero, or stop it. Raises InputError where the engine is not native."""
        self._native().set_profiling(on)

    def profile(self) -> list[StageTime]:
        """Return the stages of the forward pass in order. Raises InputError where the engine is not native."""
        return [StageTime(*row) for row in self._native().profile()]

    def _native(self) -> Any:
        if self.backend == "reference":
            raise InputError('the reference engine has no profile; load the model with engine="native"')
        return self._engine


def load(
    path: str | os.PathLike[str], threads: int = 0, engine: str = "native", *, backend: str | None = None
) -> Classifier:
    """Load a packed model.

    ``threads`` counts those of the native engine; 0 takes every core this process may run on. ``engine`` is
    ``"native"``, or ``"reference"``: NumPy, slow, the same logits bit for bit. The native engine uses the fastest
    instruction set of the machine, or the one that ``backend`` or else the environment variable ``GSB_VIT_BACKEND``
    names: ``portable``, ``avx2``, ``avx512`` or ``neon``.

    Raises:
        InputError: for a missing, truncated or foreign file, an unknown engine or backend, a number of threads out of
            range, and where the native extension is not built.
    """
    path = as_path(path, "a packed model file")
    if not isinstance(engine, str) or engine not in ENGINES:
        raise InputError(f"engine {shown(engine)} is unknown; use one of {', '.join(ENGINES)}")
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads < 2**31:
        raise InputError(f"threads {shown(threads)} must be a whole number, 0 for every core")
    if backend is not None and not (isinstance(backend, str) and backend.isprintable()):
        raise InputError(f"backend {shown(backend)} is unknown; give its name, or None for the fastest")
    with open_regular(path, "a packed model file") as file:
        # The extension takes text; a path whose bytes are no UTF-8 has another name.
        name = str(path) if not _UNDECODED.search(str(path)) else f"/proc/self/fd/{file.fileno()}"
        return _load(path, name, threads, engine, backend)


def _load(path: Path, name: str, threads: int, engine: str, backend: str | None) -> Classifier:
    if engine == "reference":
        model = read(path)
        return Classifier(model.architecture, model.class_names, model.preprocessing, ReferenceModel(model))
    try:
        from gsb_vit import _native
    except ImportError as error:
        raise InputError(
            "the native extension is not built; install the package with `pip install .`, run `make native` in a "
            'checkout, or use engine="reference"'
        ) from error
    try:
        native = _native.Model(name, threads, backend or "")
    except _native.NativeError as error:
        raise InputError(str(error).replace(name, str(path))) from error
    # The extension has read and checked the file; only what Python needs is read again, from its header.
    header = json.loads(native.header)
    try:
        architecture = Architecture.from_json(header["architecture"])
        preprocessing = Preprocessing.from_json(header["preprocessing"])
    except InputError as error:
        raise InputError(f"{path}: {error}; export the model again") from error
    names = tuple(header["class_names"])
    return Classifier(architecture, names, preprocessing, native, native.backend, native.threads)
