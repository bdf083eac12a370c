"""`gsb-vit export --c`: what it writes and prints, and what it refuses."""

import re
import shlex
import subprocess
from dataclasses import replace

import pytest
from c_model import needs_compiler
from random_packed import TINY, random_packed, write_random_packed

from gsb_vit.cli import main
from gsb_vit.runtime.packed_file import write


def export(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, arguments)])
    return stop.value.code, capsys.readouterr()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    write_random_packed(path, seed=1, **TINY)
    return path


def test_a_packed_file_becomes_two_files(model, tmp_path, capsys):
    needs_compiler("cc")
    out = tmp_path / "a folder" / "c"
    code, said = export(capsys, model, "--c", out, "--engine", "reference")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["model.c", "model.h"]
    header = (out / "model.h").read_text()
    stated = {name: int(number) for name, number in re.findall(r"#define MODEL_(\w+) (\d+)\b", header)}
    flash, arena, stack = (
        int(re.search(rf"{name} .*?([\d,]+) bytes", said.out)[1].replace(",", "")) for name in ("flash", "RAM", "stack")
    )
    assert (flash, stack) == (stated["FLASH_BYTES"], stated["STACK_BYTES"]) and arena >= stated["RUN_BYTES"]
    command = re.search(r"compile it with +(.*)", said.out)[1]
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    assert (tmp_path / "model.o").is_file()
    assert not re.search(r"\{\{|\}\}", header)


def test_the_same_model_gives_the_same_files(model, tmp_path, capsys):
    for name in ("one", "two"):
        assert export(capsys, model, "--c", tmp_path / name, "--engine", "reference")[0] == 0
    for file in ("model.c", "model.h"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_two_models_in_one_program_have_names_of_their_own(tmp_path, capsys):
    needs_compiler("cc")
    for seed, name in enumerate(("cats", "dogs_2")):
        path = tmp_path / f"{name}.safetensors"
        write(path, replace(random_packed(seed=seed, **TINY), class_names=("model_a", "MODEL_B", "model.c", name)))
        assert export(capsys, path, "--c", tmp_path, "--c-name", name, "--engine", "reference")[0] == 0
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "cats.h"\n#include "dogs_2.h"\n'
        "static cats_arena cats;\nstatic dogs_2_arena dogs;\n"
        "int main(void) {\n"
        "    for (int k = 0; k < CATS_CLASSES; ++k) puts(cats_class_name(k));\n"
        "    puts(dogs_2_class_name(3));\n"
        "    return cats_check(&cats) == CATS_OK && dogs_2_check(&dogs) == DOGS_2_OK ? 0 : 1;\n}\n"
    )
    files = [tmp_path / name for name in ("main.c", "cats.c", "dogs_2.c")]
    subprocess.run(["cc", "-std=c99", "-Wall", "-Werror", *files, "-lm", "-o", tmp_path / "program"], check=True)
    said = subprocess.run([tmp_path / "program"], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["model_a", "MODEL_B", "model.c", "cats", "dogs_2"]
    assert "model_" not in (tmp_path / "cats.h").read_text()


def test_refusals_are_one_line_and_write_nothing(model, tmp_path, capsys):
    out, file = tmp_path / "c", tmp_path / "file"
    file.write_text("no folder")
    nul = tmp_path / "nul.safetensors"
    write(nul, replace(random_packed(seed=1, **TINY), class_names=("a\0", *"bcd")))
    for arguments, says in [
        ((model,), "--c OUT/"),
        ((model, "--c", out, "-o", tmp_path / "m.safetensors"), "packed already"),
        ((model, "--c", out, "--data", "digits"), "packed already"),
        ((tmp_path / "missing.safetensors", "--c", out), "cannot be read"),
        ((file, "--c", out), "not a packed model|cannot be read|header"),
        ((nul, "--c", out), "rename the class"),
        ((model, "--c", file), "cannot be written"),
        ((model, "--c", out, "--c-name", "My-Model"), "letter first"),
        ((model, "--c", out, "--c-name", "patch"), "makes PATCH_"),
        ((model, "--c", out, "--c-name", "math"), "'math' is one of C's library"),  # -I OUT would hide <math.h>
        ((model, "--c", out, "--c-name", "size"), "is one of C's library"),  # SIZE_WIDTH
        ((model, "--c", out, "--c-name", "uint_fast16"), "is one of C's library"),
        ((model, "--c", ""), "argument 4 is empty"),
        ((model, "--c", out, "--engine", "fast"), "engine 'fast' is unknown"),
    ]:
        code, said = export(capsys, *arguments)
        assert code == 2 and said.out == ""
        (line,) = said.err.splitlines()
        assert re.search(says, line), line
    assert not out.exists() and not (tmp_path / "m.safetensors").exists()
    assert file.read_text() == "no folder"


def test_files_of_before_stay_where_the_new_ones_cannot_be_written(model, tmp_path, capsys):
    (tmp_path / "c" / "model.c").mkdir(parents=True)
    (tmp_path / "c" / "model.h").write_text("made by gsb-vit before")
    code, said = export(capsys, model, "--c", tmp_path / "c", "--engine", "reference")
    assert code == 2 and "cannot be written" in said.err
    assert (tmp_path / "c" / "model.h").read_text() == "made by gsb-vit before"
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_it_includes_what_model_h_says_and_allocates_nothing(model, tmp_path, capsys):
    assert export(capsys, model, "--c", tmp_path, "--engine", "reference")[0] == 0
    included = set(
        re.findall(r"#include [<\"](.*)[>\"]", (tmp_path / "model.c").read_text() + (tmp_path / "model.h").read_text())
    )
    own = {"model.h", "arm_acle.h", "arm_mve.h"}  # beside C's; ARM's where there are the instructions
    assert included == {*own, "stddef.h", "stdint.h", "float.h", "limits.h", "math.h", "string.h"}
    assert not re.search(r"\b(malloc|calloc|realloc|alloca|printf)\b", (tmp_path / "model.c").read_text())
