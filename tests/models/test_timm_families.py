"""Every vision transformer that timm registers: it trains and evaluates, packs with equal logits, or is refused."""

import importlib.util
import warnings

import pytest
from paths import ROOT

timm = pytest.importorskip("timm")


def script():
    spec = importlib.util.spec_from_file_location("timm_families", ROOT / "benchmarks" / "timm_families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Two steps of training and an evaluation for each of 86 families. One test, so that one worker does it once.
@pytest.mark.slow
def test_every_family_trains_packs_or_is_refused_by_name():
    module = script()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        families = list(module.families())  # raises where a model dies, or its packed file has other logits
    verdicts = [(family.refused is not None, family.obstacle is not None) for family in families]
    assert {(False, False), (False, True), (True, False)} == set(verdicts)
    names = {name for family in families for name in family.names}
    assert {"gsb_vit_tiny_patch16_224", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"} <= names
    assert {"vit_base_patch16_gap_224", "vit_base_patch14_reg4_dinov2"} <= names and len(names) > 150
    for family in families:
        for reason in (family.refused, family.obstacle):
            assert reason is None or ("\n" not in reason and len(reason) < 200), family
    text = (ROOT / "docs" / "timm-models.md").read_text(encoding="utf-8")
    if f"timm ({timm.__version__})" in text:  # else the table is of another timm
        assert module.table(families) in text
