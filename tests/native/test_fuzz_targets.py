"""The targets of `make fuzz`, built without libFuzzer and tried on their first inputs and some mutants."""

import sys

import pytest
from native_build import build_here, run
from paths import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("target, mutants", [("model", 300), ("picture", 3000)])
def test_a_fuzz_target_builds_and_finds_nothing(target, mutants, tmp_path):
    files = []
    if target == "model":
        run(sys.executable, ROOT / "native/fuzz/seeds.py", tmp_path)
        files = sorted(tmp_path.iterdir())
        assert any("one_bit" in path.name for path in files)
    program = build_here(f"{target}_replay") / "native/tests" / f"{target}_replay"
    assert run(program, mutants, *files).stdout == f"{len(files) + mutants} inputs\n".encode()
