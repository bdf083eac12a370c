"""Run a packed model: ``load`` one, then ask it for logits or for the names of what is in pictures."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.class_names import class_name, class_names
from gsb_vit.data.pictures import Picture
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import Decision
from gsb_vit.errors import InputError, ModelError, shown
from gsb_vit.files import as_path, open_regular
from gsb_vit.limits import memory_limit

from .card import html_card, line_card
from .packed_file import PackedModel, parse, read, refuse_other_model, write
from .pictures import batches, is_many, is_stored, picture_digest, prepare
from .reference import ReferenceModel, check_batch
from .schema import DECISION_KEY, MAX_MEMORY, Architecture, read_decision
from .shipped import locate_model, what_to_give

ENGINES = ("native", "reference")
_UNDECODED = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def _overflow_is_a_model_error() -> Iterator[None]:
    """The extension raises a bare ValueError; of a batch that was checked, only overflow is left."""
    try:
        yield
    except ValueError as error:
        raise ModelError(str(error)) from error


@dataclass(frozen=True)
class Prediction:
    """A class and its probability, as :meth:`Classifier.predict_proba` gives it."""

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
        decision: Decision = Decision(),  # noqa: B008  (immutable)
    ) -> None:
        self.architecture = architecture
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.backend = backend
        self.threads = threads
        self.decision = decision
        self._engine = engine

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.backend != "reference":  # another machine may have chosen otherwise
            self.backend, self.threads = self._engine.backend, self._engine.threads

    def prepare(self, picture: Picture, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """Open, orient, resize and crop one picture: → uint8 (H, W, 3), as :meth:`logits` takes a batch of.

        The same bits as ``preprocessing`` makes, by the engine's own code: the native one does not need Pillow to
        resize. What a picture may be, and ``max_pixels``, is as in :meth:`predict`.

        Raises:
            InputError: for a picture that cannot be read.
        """
        return prepare(picture, self.preprocessing, self.backend, max_pixels)

    def logits(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify uint8 (B, H, W, 3), made by ``preprocessing``: → float32 (B, K).

        Raises:
            InputError: for another shape or type; a ModelError where the model's numbers overflow.
        """
        if not isinstance(pictures, np.ndarray):
            raise InputError(f"a {type(pictures).__name__} is no batch; give an array, as Preprocessing makes them")
        check_batch(pictures, self.architecture.image_size)
        with _overflow_is_a_model_error():
            logits: NDArray[np.float32] = self._engine.logits(np.ascontiguousarray(pictures))
        return logits

    def __repr__(self) -> str:
        return line_card(self)

    def _repr_html_(self) -> str:
        return html_card(self)

    @overload  # text and bytes are sequences, too: the first that fits counts
    def predict(  # type: ignore[overload-overlap]
        self, picture: Picture, top: int = 5, *, unknown: bool = False, max_pixels: int | None = None
    ) -> list[Prediction]: ...
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, picture: Sequence[Picture], top: int = 5, *, unknown: bool = False, max_pixels: int | None = None
    ) -> list[list[Prediction]]: ...
    @overload
    def predict(
        self, picture: Iterable[Picture], top: int = 5, *, unknown: bool = False, max_pixels: int | None = None
    ) -> Iterator[list[Prediction]]: ...
    def predict(self, picture: Any, top: int = 5, *, unknown: bool = False, max_pixels: int | None = None) -> Any:
        """Name the ``top`` most likely classes of a picture, best first.

        A picture is a path, the bytes of a file, a file object, a Pillow image or an array, as
        :func:`gsb_vit.data.pictures.open_picture` reads it; ``max_pixels`` is its limit. A list or tuple of pictures,
        or an array (B, H, W, 3), gives a list with an answer each. Any other iterable gives an iterator: its pictures
        are read as the answers are asked for, 64 at a time, and never kept.
        With fewer classes than ``top``, all are named; equal probabilities come in the order of the classes.
        With ``unknown``, a picture that is none of the classes gets an empty list, as ``decision.is_unknown`` says.

        Raises:
            InputError: for a picture that cannot be read, for ``top`` below 1, and for ``unknown`` where the model has
                no threshold; a ModelError as :meth:`logits`.
        """
        if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or top < 1:
            raise InputError(f"top {shown(top)} must be a whole number of at least 1")
        if unknown:
            self.decision.require_unknown()

        def run(pictures: NDArray[np.uint8]) -> list[list[Prediction]]:
            return self._named(self.logits(pictures), int(top), unknown)

        if not is_many(picture):
            return run(self.preprocessing(picture, max_pixels=max_pixels)[None])[0]
        named = self._rows(picture, run, max_pixels)
        return list(named) if is_stored(picture) else named

    def _named(self, logits: NDArray[np.float32], top: int, unknown: bool) -> list[list[Prediction]]:
        probabilities = self.decision.probabilities(logits)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        known = ~self.decision.is_unknown(logits) if unknown else np.ones(len(logits), bool)
        return [
            [Prediction(self.class_names[k], float(row[k])) for k in best] if answered else []
            for row, best, answered in zip(probabilities, order, known, strict=True)
        ]

    def predict_proba(self, picture: Any, *, max_pixels: int | None = None) -> Any:
        """Return the probability of every class, in the order of ``class_names``: softmax(logits / temperature).

        The temperature is that of :attr:`decision`. Export fits it on validation pictures; older files have 1.

        A picture gives float64 (K); a list, a tuple or an array (B, H, W, 3) of pictures float64 (B, K); any other
        iterable an iterator over float64 (K). What a picture may be, and how iterables are read, is as in
        :meth:`predict`.

        Raises:
            InputError: for a picture that cannot be read; a ModelError as :meth:`logits`.
        """
        return self._each(picture, self._probabilities, len(self.class_names), np.float64, max_pixels)

    def embed(self, picture: Any, *, max_pixels: int | None = None) -> Any:
        """Return the features before the head: the token that the head reads, behind the last layer norm.

        A picture gives float32 (D); a list, a tuple or an array (B, H, W, 3) of pictures float32 (B, D); any other
        iterable an iterator over float32 (D). D is the width C of the network times the number of its heads: the
        tokens of a class head and a distillation head lie side by side. Both engines, and every instruction set, give
        the same bits.

        Raises:
            InputError: for a picture that cannot be read; a ModelError as :meth:`logits`.
        """
        width = len(self.architecture.heads) * self.architecture.embed_dim
        return self._each(picture, self._features, width, np.float32, max_pixels)

    def _features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        with _overflow_is_a_model_error():
            features: NDArray[np.float32] = self._engine.embed(pictures)
        return features

    def _probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        return self.decision.probabilities(self.logits(pictures))

    def _each(
        self, picture: Any, run: Callable[[NDArray[np.uint8]], Any], width: int, dtype: type, max_pixels: int | None
    ) -> Any:
        """What ``run`` says of one picture, of stored pictures as one array, of others as an iterator over rows."""
        if not is_many(picture):
            return run(self.prepare(picture, max_pixels=max_pixels)[None])[0]
        rows = self._rows(picture, run, max_pixels)
        if not is_stored(picture):
            return rows
        found = list(rows)
        return np.stack(found) if found else np.empty((0, width), dtype)

    def _rows(
        self, pictures: Iterable[Picture], run: Callable[[NDArray[np.uint8]], Any], max_pixels: int | None
    ) -> Iterator[Any]:
        for batch in batches(pictures, partial(self.prepare, max_pixels=max_pixels)):
            yield from run(batch)

    def add_class(
        self,
        name: str,
        pictures: Iterable[Picture],
        path: str | os.PathLike[str],
        *,
        held_out: Mapping[str, Iterable[Picture]] | None = None,
        max_pixels: int | None = None,
    ) -> "Classifier":
        """Add a class from a few of its pictures, without training: write a packed file, and return its classifier.

        The new class comes behind the others. Two pictures are the least; 5 to 20 do better. Each head gets one more
        row, made of the mean of :meth:`embed`, and a bias that makes its logits comparable (``runtime.add_class``).
        This classifier, and the logits of its classes in the new one, stay as they are, bit for bit.

        ``held_out`` names old classes and some pictures of each that the model was not trained on; it may name the new
        class, too. With them the bias is set so that the new class takes few pictures of the old ones, and temperature
        and threshold of :attr:`decision` are fitted again, for all classes. Of the new class's own pictures each is
        judged for that by a row of the others.

        Without them, temperature and threshold stay those of the old classes: a few pictures are too few to fit them
        again. The promise about false alarms still holds for the old classes, because a further logit can only raise
        the score. For the new class there is none, and its probabilities are not calibrated.

        ``path`` is written whole or not at all. Its provenance names the class, and counts all these pictures as seen,
        so that ``evaluate`` leaves them out.

        Raises:
            InputError: a picture that cannot be read or is there twice, fewer than two, a name that the model has, a
                class of ``held_out`` that it has not, a ``path`` that cannot be written; then nothing is.
        """
        from .add_class import HeldOut, require_name, with_class

        target = as_path(path, "a packed file to write")
        refuse_other_model(target)
        name = require_name(self.class_names, name)
        labels, kept = self._held_out(name, held_out or {})
        given: list[Any] = list(pictures) if is_many(pictures) else [pictures]
        stored = [picture_digest(one) for one in (*given, *kept)]  # before file objects are read to their end
        if twice := [place for place, one in enumerate(stored) if one and one in stored[:place]]:
            whose = f"of {name!r}" if held_out is None else "given"
            raise InputError(
                f"{len(twice)} of {len(stored)} pictures {whose} are copies of others, as number {twice[0] + 1}; "
                "give each picture once"
            )
        features, logits = self._read(given, max_pixels)
        aside = None if held_out is None else HeldOut(*self._read(kept, max_pixels), np.array(labels, dtype=np.int64))
        model = with_class(self._packed(), name, features, logits, stored, aside)
        write(target, model)
        if self.backend == "reference":
            return load(target, engine="reference", max_memory=self._engine.max_memory)
        limit = self._engine.__getstate__()[3]
        return load(target, threads=self.threads, backend=self.backend, max_memory=limit)

    def _held_out(self, name: str, held_out: Mapping[str, Iterable[Picture]]) -> tuple[list[int], list[Any]]:
        """Labels and pictures of a further class's ``held_out``."""
        if not isinstance(held_out, Mapping):
            raise InputError(f"held_out {shown(held_out)} must map names of classes to pictures")
        known = class_names((*self.class_names, name))
        labels: list[int] = []
        kept: list[Any] = []
        for one, pictures in held_out.items():
            if not isinstance(one, str) or class_name(one) not in known:
                raise InputError(f"the model has no class {shown(one)}, of which there are held-out pictures")
            mine = list(pictures) if is_many(pictures) else [pictures]
            labels += [known.index(class_name(one))] * len(mine)
            kept += mine
        return labels, kept

    def _read(self, pictures: Sequence[Any], max_pixels: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features (n, heads · C) and logits (n, K) of pictures."""
        width, classes = len(self.architecture.heads) * self.architecture.embed_dim, len(self.class_names)
        features, logits = [np.empty((0, width), np.float32)], [np.empty((0, classes), np.float32)]
        for batch in batches(pictures, partial(self.prepare, max_pixels=max_pixels)):
            features.append(self._features(batch))
            logits.append(self.logits(batch))
        return np.concatenate(features), np.concatenate(logits)

    def _packed(self) -> PackedModel:
        """The packed model that runs."""
        if self.backend == "reference":
            found: PackedModel = self._engine.packed
            return found
        return parse(self._engine.__getstate__()[0])

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
    path: str | os.PathLike[str],
    threads: int = 0,
    engine: str = "native",
    *,
    backend: str | None = None,
    max_memory: int | None = None,
) -> Classifier:
    """Load a packed model: a file, or by its name one that comes with the package (``gsb-vit models`` lists them).

    A path that exists goes before a name; ``shipped:NAME`` is the shipped model in any case, ``hf:USER/NAME`` a model
    on the Hugging Face hub (extra ``hub``).

    ``threads`` counts those of the native engine; 0 takes every core this process may run on. ``engine`` is
    ``"native"``, or ``"reference"``: NumPy, slow, the same logits bit for bit. The native engine uses the fastest
    instruction set of the machine, or the one that ``backend`` or else the environment variable ``GSB_VIT_BACKEND``
    names: ``portable``, ``avx2``, ``avx512``, ``neon`` or ``neon_dot``.

    A loaded model takes at most ``max_memory`` bytes: its file, its weights and the arrays of a forward pass, which
    grow with tokens². A model that would take more is refused before it asks for them. The default is what the
    environment variable ``GSB_VIT_MAX_MEMORY`` says, or else 1 GiB.

    Raises:
        InputError: for a missing, truncated or foreign file, a model that is not on the hub, an unknown engine or
            backend, a number of threads out of range, a model that takes more than ``max_memory``, and where the native
            extension is not built.
    """
    path = locate_model(path)
    if not isinstance(engine, str) or engine not in ENGINES:
        raise InputError(f"engine {shown(engine)} is unknown; use one of {', '.join(ENGINES)}")
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads < 2**31:
        raise InputError(f"threads {shown(threads)} must be a whole number, 0 for every core")
    if backend is not None and not (isinstance(backend, str) and backend.isprintable()):
        raise InputError(f"backend {shown(backend)} is unknown; give its name, or None for the fastest")
    most = min(memory_limit(max_memory, MAX_MEMORY), sys.maxsize)
    with open_regular(path, what_to_give(path)) as file:
        # The extension takes text; a path whose bytes are no UTF-8 has another name.
        name = str(path) if not _UNDECODED.search(str(path)) else f"/proc/self/fd/{file.fileno()}"
        return _load(path, name, threads, engine, backend, most)


def _load(path: Path, name: str, threads: int, engine: str, backend: str | None, max_memory: int) -> Classifier:
    if engine == "reference":
        model = read(path, max_memory=max_memory)
        try:
            reference = ReferenceModel(model, max_memory)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return Classifier(
            model.architecture, model.class_names, model.preprocessing, reference, decision=model.decision
        )
    try:
        from gsb_vit import _native
    except ImportError as error:
        raise InputError(
            "the native extension is not built; install the package with `pip install .`, run `make native` in a "
            'checkout, or use engine="reference"'
        ) from error
    try:
        native = _native.Model(name, threads, backend or "", max_memory)
    except _native.NativeError as error:
        raise InputError(str(error).replace(name, str(path))) from error
    # The extension has read and checked the file; only what Python needs is read again, from its header.
    header = json.loads(native.header)
    try:
        architecture = Architecture.from_json(header["architecture"])
        preprocessing = Preprocessing.from_json(header["preprocessing"])
        decision = read_decision(header[DECISION_KEY]) if DECISION_KEY in header else Decision()
    except InputError as error:
        raise InputError(f"{path}: {error}; export the model again") from error
    names = tuple(header["class_names"])
    return Classifier(architecture, names, preprocessing, native, native.backend, native.threads, decision)
