"""The native test program under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Clang's UndefinedBehaviorSanitizer finds what GCC's does not, such as an offset to a null pointer.
"""

import re
import shutil

import pytest
from native_build import build, needed, run
from needs import skip_without
from selftest_models import write_models

MODELS = {
    "address,undefined": ("two_heads", "oblong_full_bias", "head_80", "one_group", "dense_groups"),
    "thread": ("two_heads", "fixed_limits"),
}
COMPILERS = {"c++": ("c++",), "clang": ("clang++", "clang++-19")}


def compiler(name):
    """The first of a compiler's programs that is installed; skip where there is none."""
    *others, last = COMPILERS[name]
    return next(filter(None, map(shutil.which, others)), None) or needed(last, "sanitizers")


@pytest.fixture(params=[("c++", "address,undefined"), ("c++", "thread"), ("clang", "address,undefined")], ids=" ".join)
def sanitized(request, tmp_path):
    """The test program built with a sanitizer; skipped where the compiler lacks it or its programs cannot run here."""
    program, sanitizers = compiler(request.param[0]), request.param[1]
    (tmp_path / "probe.cpp").write_text("int main() { return 0; }\n")
    flags = [f"-fsanitize={sanitizers}", tmp_path / "probe.cpp", "-o", tmp_path / "probe"]
    if run(program, *flags, ok=False).returncode or run(tmp_path / "probe", ok=False).returncode:
        skip_without("sanitizers", f"programs of {program} with -fsanitize={sanitizers.replace(',', ' and ')}")
    name = "_".join(request.param).replace("+", "").replace(",", "_")
    # -O1: sanitized -O3 code takes several times as long to compile.
    options = [f"-DGSB_VIT_SANITIZE={sanitizers}", f"-DCMAKE_CXX_COMPILER={program}"]
    options += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    folder = build(name, *options, targets=["selftest"])
    models = write_models(tmp_path, MODELS[sanitizers])
    return folder / "native/tests/selftest", [path for files in models.values() for path in files]


# Compiles the library and its tests once for each sanitizer; sanitized code is several times as slow.
@pytest.mark.slow
def test_no_sanitizer_complains(sanitized):
    program, files = sanitized
    done = run(program, *files, ok=False)
    said = done.stdout.decode() + done.stderr.decode(errors="replace")
    assert done.returncode == 0, said[-6000:]
    assert re.search(r"^\d+ passed, 0 failed$", said, re.MULTILINE)
