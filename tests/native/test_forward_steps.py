"""The native forward pass lists its steps beside those of the reference; both names exist."""

import re

from paths import ROOT


def test_the_steps_of_both_engines_are_named_beside_each_other():
    header = (ROOT / "native/src/forward/forward.h").read_text(encoding="utf-8")
    reference = (ROOT / "src/gsb_vit/runtime/reference.py").read_text(encoding="utf-8")
    listed = re.findall(r"^//   (_\w+) +(.+)$", header, re.MULTILINE)
    steps = set(re.findall(r"^    def (_\w+)\(", reference, re.MULTILINE)) - {"_forward", "_unpacked", "_by_head"}
    assert {step for step, _ in listed} == {step for step in steps if not step.startswith("__")}
    for _, functions in listed:
        for name in functions.split(", which")[0].split(", "):
            assert re.search(rf"\b{name}\(", header), name
