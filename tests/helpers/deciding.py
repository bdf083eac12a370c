"""Packed models that call some of their pictures unknown, for tests of what every engine decides."""

from dataclasses import replace

import numpy as np
from random_packed import TINY, random_packed, random_pictures

from gsb_vit.decision import SCORES, Decision, Unknown, unknown_scores
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.reference import ReferenceModel

TEMPERATURE = 0.7


def write_deciding(path, score=SCORES[0], count=200, **shape):
    """Write a model whose threshold is the median of its pictures' scores: one picture is at the threshold exactly.

    Return the decision, uint8 pictures (count, H, W, 3), their logits and which of them are unknown.
    """
    model = random_packed(seed=3, **{**TINY, "num_classes": 7, **shape})
    pictures = random_pictures(model.architecture, count, seed=4)
    logits = ReferenceModel(model).logits(pictures)
    threshold = float(np.sort(unknown_scores(logits, score, TEMPERATURE))[count // 2])
    decision = Decision(TEMPERATURE, Unknown(score, threshold, 0.05))
    packed_file.write(path, replace(model, decision=decision))
    unknown = decision.is_unknown(logits)
    assert unknown.sum() == count // 2
    return decision, pictures, logits, unknown
