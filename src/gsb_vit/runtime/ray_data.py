"""Prediction over many pictures on several machines: Ray Data's ``map_batches`` (the extra ``ray``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.errors import InputError, ModelError

from .classifier import Classifier

BATCH = 256
ADDED = ("class", "probability", "error")


class BatchPredictor:
    """What ``map_batches`` calls: a batch of columns in, the same columns without the pictures and with answers out.

    The pictures in ``column`` are bytes of files, paths or arrays, as :meth:`gsb_vit.Classifier.predict` takes them.
    Added are ``class`` (empty where there is none), its ``probability``, and ``error``: why a picture could not be
    read, empty where it could. A picture that cannot be read stops nothing.
    """

    def __init__(self, model: Classifier, column: str = "bytes", unknown: bool = False) -> None:
        self.model, self.column, self.unknown = model, column, unknown
        if unknown:
            model.decision.require_unknown()

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer one batch. Raises InputError where it has no such column, ModelError as ``Classifier.predict``."""
        if self.column not in batch:
            raise InputError(f"there is no column {self.column!r}; there are {', '.join(sorted(batch))}")
        answers = [self._answer(picture) for picture in batch[self.column]]
        others = {name: values for name, values in batch.items() if name != self.column}
        kinds = (str, np.float64, str)
        found: dict[str, NDArray[Any]] = {
            name: np.array([answer[place] for answer in answers], dtype=kind)
            for place, (name, kind) in enumerate(zip(ADDED, kinds, strict=True))
        }
        return {**others, **found}

    def _answer(self, picture: Any) -> tuple[str, float, str]:
        try:
            best = self.model.predict(picture, 1, unknown=self.unknown)
        except ModelError:
            raise
        except InputError as error:
            return "", 0.0, str(error)
        return (best[0].name, best[0].probability, "") if best else ("", 0.0, "")


def ray_predict(
    dataset: Any,
    model: Classifier,
    *,
    column: str = "bytes",
    unknown: bool = False,
    workers: int = 1,
    batch_size: int = BATCH,
    **options: Any,
) -> Any:
    """Return a ``ray.data.Dataset`` with the answers of a packed model for the pictures of ``dataset``, lazily.

    The model travels to the workers as its bytes, so its file need not lie on their disks. Each of the ``workers`` is a
    process that loads it once, with as many threads as ``model`` was loaded with; load it with ``threads=1`` and take a
    worker for each core. Columns are those of :class:`BatchPredictor`. ``options`` go to ``map_batches``.

    Raises:
        InputError: Ray Data is not installed, ``dataset`` is none of its data sets, ``model`` is no classifier, or
            ``unknown`` is asked of a model without a threshold.
    """
    try:
        import ray.data
    except ImportError as error:
        raise InputError(f"prediction on Ray needs {error.name or 'ray'}: pip install 'gsb-vit[ray]'") from error
    if not isinstance(dataset, ray.data.Dataset):
        raise InputError(f"a {type(dataset).__name__} is no data set of Ray; make one with ray.data.read_binary_files")
    if not isinstance(model, Classifier):
        raise InputError(f"a {type(model).__name__} is no classifier; load one with gsb_vit.load(path, threads=1)")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise InputError(f"workers {workers!r} must be a whole number of at least 1")
    BatchPredictor(model, column, unknown)  # what it refuses is said here, not by a worker
    return dataset.map_batches(
        BatchPredictor,
        fn_constructor_args=(model, column, unknown),
        concurrency=workers,
        batch_size=batch_size,
        batch_format="numpy",
        **options,
    )
