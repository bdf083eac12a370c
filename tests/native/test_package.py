"""The installed C library: find_package, pkg-config, what the shared library shows, the header in other languages."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from native_build import build, build_here, needed, run
from paths import ROOT
from random_packed import SHAPES, random_pictures, write_random_packed

import gsb_vit

HEADER = ROOT / "native" / "include" / "gsb_vit.h"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared libraries: without ELF")

CONSUMER = """
#include <gsb_vit.h>
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char** argv) {
    gsb_vit_model* model = argc == 3 ? gsb_vit_load(argv[1], 1, NULL) : NULL;
    if (!model) return fprintf(stderr, "%s\\n", gsb_vit_error()), 2;
    const gsb_vit_info info = gsb_vit_get_info(model);
    const size_t bytes = (size_t)info.height * info.width * 3;
    uint8_t* pixels = malloc(bytes);
    float* logits = malloc(info.classes * sizeof(float));
    FILE* file = fopen(argv[2], "rb");
    if (!file || fread(pixels, 1, bytes, file) != bytes || gsb_vit_predict(model, pixels, 1, logits)) return 1;
    for (int k = 0; k < info.classes; ++k) printf("%.9g\\n", logits[k]);
    fclose(file), free(pixels), free(logits), gsb_vit_free(model);
    return 0;
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES C {languages})
find_package(gsb_vit 0.1 REQUIRED)
add_executable(consumer consumer.c)
target_link_libraries(consumer PRIVATE gsb_vit::gsb_vit)
"""


@pytest.fixture(scope="module", params=["static", "shared"])
def installed(request, tmp_path_factory):
    """Kind and prefix of an installation, moved to another place afterwards."""
    folder = build_here("gsb_vit", "gsb-vit-classify") if request.param == "static" else build_shared()
    first, prefix = tmp_path_factory.mktemp(request.param) / "first", tmp_path_factory.mktemp(request.param) / "moved"
    run(needed("cmake"), "--install", folder, "--prefix", first)
    shutil.move(first, prefix)
    return request.param, prefix


def build_shared():
    # -O1: what the kernels compute is tested elsewhere, and -O3 takes longer to compile.
    options = ["-DGSB_VIT_SHARED=ON", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    off = ["-DGSB_VIT_TESTS=OFF", "-DGSB_VIT_EXAMPLES=OFF", "-DGSB_VIT_CLASSIFY=OFF", "-DGSB_VIT_NATIVE_WARNINGS=ON"]
    return build("shared", *options, *off, targets=("gsb_vit",))


@pytest.fixture(scope="module")
def shared_library():
    return build_shared() / "libgsb_vit.so.0"


@pytest.fixture(scope="module")
def question(tmp_path_factory):
    """A model, the pixels of a picture, and its logits."""
    folder = tmp_path_factory.mktemp("question")
    packed = write_random_packed(folder / "model.safetensors", seed=7, **SHAPES["two_heads"])
    pixels = random_pictures(packed.architecture, 1, seed=2)
    (folder / "pixels").write_bytes(pixels.tobytes())
    return (
        folder / "model.safetensors",
        folder / "pixels",
        gsb_vit.load(folder / "model.safetensors", engine="reference").logits(pixels)[0],
    )


def check(program, question, **options):
    done = run(program, *question[:2], **options)
    np.testing.assert_array_equal(np.array(done.stdout.split(), dtype=np.float32), question[2])


def library_folder(prefix):
    return next(prefix.glob("lib*/**/libgsb_vit.*")).parent


def test_find_package(installed, question, tmp_path):
    kind, prefix = installed
    (tmp_path / "consumer.c").write_text(CONSUMER)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(languages="CXX" if kind == "static" else ""))
    ninja = f"-DCMAKE_MAKE_PROGRAM={needed('ninja')}"
    run(needed("cmake"), "-S", tmp_path, "-B", tmp_path / "b", "-G", "Ninja", ninja, f"-DCMAKE_PREFIX_PATH={prefix}")
    run(needed("cmake"), "--build", tmp_path / "b")
    check(tmp_path / "b" / "consumer", question)


def test_find_package_of_another_version_is_refused(installed, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(languages="CXX").replace("gsb_vit 0.1", "gsb_vit 0.2"))
    (tmp_path / "consumer.c").write_text(CONSUMER)
    ninja = f"-DCMAKE_MAKE_PROGRAM={needed('ninja')}"
    options = ["-S", tmp_path, "-B", tmp_path / "b", "-G", "Ninja", ninja, f"-DCMAKE_PREFIX_PATH={installed[1]}"]
    done = run(needed("cmake"), *options, ok=False)
    assert done.returncode != 0
    assert b'compatible with requested version "0.2"' in done.stderr


def test_pkg_config(installed, question, tmp_path):
    _, prefix = installed
    (tmp_path / "consumer.c").write_text(CONSUMER)
    libraries = library_folder(prefix)
    environment = {"PKG_CONFIG_PATH": str(libraries / "pkgconfig"), "PATH": "/usr/bin:/bin"}
    asked = run(needed("pkg-config", "packages of C"), "--cflags", "--libs", "gsb_vit", env=environment)
    flags = asked.stdout.decode().split()
    run(
        needed("cc"),
        "-std=c99",
        tmp_path / "consumer.c",
        *flags,
        f"-Wl,-rpath,{libraries}",
        "-o",
        tmp_path / "consumer",
    )
    check(tmp_path / "consumer", question)
    version = run(needed("pkg-config"), "--modversion", "gsb_vit", env=environment).stdout.decode().strip()
    assert version == gsb_vit.__version__


def functions_of_header():
    """Name → (type returned, types of parameters), each as the header has them, without spaces."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = {}
    for result, name, given in re.findall(r"^([\w ]+\*?) ?(gsb_vit_\w+)\(([^)]*)\);", text, re.MULTILINE | re.DOTALL):
        parts = [] if given.strip() == "void" else [" ".join(part.split()) for part in given.split(",")]
        found[name] = result.strip(), [re.sub(r"\s*\w+$", "", part) for part in parts]
    return found


def fields_of_header(struct):
    """(name, type) of a struct's fields."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    body = re.search(rf"typedef struct {struct} {{(.*?)}} {struct};", text, re.DOTALL)[1]
    found = []
    for line in filter(str.strip, body.split(";")):
        kind, names = re.fullmatch(r"\s*(const char\*|\w+) ([\w, \n]+)", line).groups()
        found += [(name.strip(), kind) for name in names.split(",")]
    return found


def test_the_shared_library_shows_the_headers_functions_only(shared_library):
    listed = run(needed("nm"), "-D", "--defined-only", shared_library).stdout.decode().splitlines()
    symbols = {line.split()[2] for line in listed if line.split()[1] != "A"}
    assert symbols == {f"{name}@@GSB_VIT_0" for name in functions_of_header()}
    assert len(symbols) == len(set(re.findall(r"gsb_vit_\w+(?=\()", HEADER.read_text(encoding="utf-8")))) > 15


def test_the_abi_is_in_the_librarys_name(shared_library):
    read = run(needed("readelf"), "-d", shared_library).stdout.decode()
    assert "soname: [libgsb_vit.so.0]" in read
    assert shared_library.resolve().name == f"libgsb_vit.so.{gsb_vit.__version__}"


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("cc", ["-x", "c", "-std=c99", "-Wstrict-prototypes"]),
        ("c++", ["-x", "c++", "-std=c++11"]),
        ("clang-19", ["-x", "c", "-std=c99", "-Weverything", "-Wno-padded", "-Wno-unused-macros"]),
    ],
)
def test_the_header_is_plain_c_and_c_plus_plus(program, flags, tmp_path):
    (tmp_path / "one.c").write_text("#include <gsb_vit.h>\n#include <gsb_vit.h>\n")
    strict = ["-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}"]
    run(needed(program, "the header in C and C++"), *flags, *strict, tmp_path / "one.c")


RUST = """
#![allow(non_camel_case_types, non_upper_case_globals, dead_code)]
include!("bindings.rs");
use std::ffi::CString;
fn main() {
    let given: Vec<String> = std::env::args().collect();
    let path = CString::new(given[1].as_str()).unwrap();
    let pixels = std::fs::read(&given[2]).unwrap();
    unsafe {
        let model = gsb_vit_load(path.as_ptr(), 1, std::ptr::null());
        assert!(!model.is_null());
        let mut logits = vec![0f32; gsb_vit_get_info(model).classes as usize];
        assert_eq!(gsb_vit_predict(model, pixels.as_ptr(), 1, logits.as_mut_ptr()), 0);
        for logit in logits { println!("{logit:e}"); }
        gsb_vit_free(model);
    }
}
"""


def test_rust_uses_the_header_through_bindgen(shared_library, question, tmp_path):
    """bindgen's own tests of every struct's layout, and a program."""
    bindgen, rustc = needed("bindgen", "Rust"), needed("rustc", "Rust")
    run(bindgen, HEADER, "--allowlist-function", "gsb_vit_.*", "--size_t-is-usize", "-o", tmp_path / "bindings.rs")
    text = (tmp_path / "bindings.rs").read_text()
    assert set(re.findall(r"pub fn (gsb_vit_\w+)", text)) == set(functions_of_header())
    (tmp_path / "main.rs").write_text(RUST)
    (tmp_path / "libgsb_vit.so").symlink_to(shared_library.resolve())
    rpath = f"link-args=-Wl,-rpath,{shared_library.parent}"
    flags = ["--edition", "2021", "-L", tmp_path, "-l", "gsb_vit", "-C", rpath, tmp_path / "main.rs"]
    run(rustc, *flags, "-o", tmp_path / "main")
    check(tmp_path / "main", question)
    run(rustc, "--test", *flags, "-o", tmp_path / "layouts")
    assert b"test result: ok. 3 passed" in run(tmp_path / "layouts").stdout


_TEXT = "[MarshalAs(UnmanagedType.LPUTF8Str)] string"
C_SHARP = {
    "gsb_vit_model*": "IntPtr",
    "const gsb_vit_model*": "IntPtr",
    "const char*": _TEXT,
    "int": "int",
    "size_t": "nuint",
    "void": "void",
    "double": "double",
    "const uint8_t*": "byte[]",
    "uint8_t*": "byte[]",
    "const float*": "float[]",
    "float*": "float[]",
    "double*": "double[]",
    "gsb_vit_stage*": "[Out] GsbVitStage[]",
    "gsb_vit_info": "GsbVitInfo",
    "gsb_vit_decision": "GsbVitDecision",
}


def test_the_declarations_for_c_sharp_are_those_of_the_header():
    text = (ROOT / "native" / "examples" / "GsbVit.cs").read_text(encoding="utf-8")
    declared = {}
    for result, name, given in re.findall(r"static extern (\w+) (gsb_vit_\w+)\((.*)\);", text):
        parts = given.split(", ") if given else []
        declared[name] = result, [part.rsplit(" ", 1)[0] for part in parts]
    expected = {}
    for name, (result, parts) in functions_of_header().items():
        returned = "IntPtr" if result == "const char*" else C_SHARP[result]
        expected[name] = returned, [C_SHARP[part] for part in parts]
    assert declared == expected
    for struct, name in (("info", "GsbVitInfo"), ("decision", "GsbVitDecision"), ("stage", "GsbVitStage")):
        body = re.search(rf"public struct {name}\n{{(.*?)\n}}", text, re.DOTALL)[1]
        fields = []
        for kind, names in re.findall(r"public (\w+) ([\w, ]+);", body):
            fields += [(one, kind) for one in names.split(", ")]
        own = [
            (one, "IntPtr" if kind == "const char*" else kind) for one, kind in fields_of_header(f"gsb_vit_{struct}")
        ]
        assert fields == own
    numbers = dict(re.findall(r"(GREY|RGB|RGBA) = (\d)", HEADER.read_text(encoding="utf-8")))
    assert dict(re.findall(r"(\w+) = (\d)", re.search(r"const int (.*);", text)[1].upper())) == numbers


def test_a_shared_library_with_the_extension_is_refused(tmp_path):
    done = subprocess.run(
        [needed("cmake"), "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={needed('ninja')}",
         "-DGSB_VIT_SHARED=ON"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "add -DGSB_VIT_PYTHON=OFF" in " ".join(done.stderr.split())
