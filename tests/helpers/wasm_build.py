"""The WebAssembly module: the one in the package, and one built anew where Debian's toolchain is."""

import re

from native_build import build, found, run
from needs import skip_without
from paths import ROOT, SOURCE

MODULE = SOURCE / "gsb_vit" / "app" / "gsb_vit.wasm"
TOOLS = ("clang++-19", "wasm-ld-19", "llvm-ar-19", "llvm-ranlib-19")
CLANG = "19.1.7"  # that built the module in the package
PART = "the WebAssembly module built anew"


def build_module():
    """Build the module and return its path; skip without the toolchain that built the one in the package."""
    if lacking := [tool for tool in TOOLS if found(tool) is None]:
        skip_without(PART, *lacking)
    version = re.search(r"version (\S+)", run("clang++-19", "--version").stdout.decode())[1]
    if version != CLANG:
        skip_without(PART, f"clang {CLANG}")
    options = [f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'wasm32-wasi.cmake'}", "-DCMAKE_BUILD_TYPE=MinSizeRel"]
    options += [
        "-DGSB_VIT_NATIVE_WARNINGS=ON",
        "-DGSB_VIT_EXAMPLES=OFF",
        "-DGSB_VIT_CLASSIFY=OFF",
        "-DGSB_VIT_TESTS=OFF",
    ]
    return build("wasm", *options) / "gsb_vit.wasm"
