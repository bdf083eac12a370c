"""The examples for an ESP32-S3 and Arduino, compiled here with stand-ins for the boards' libraries, and run."""

import shutil

import numpy as np
import pytest
from c_model import needs_compiler, run
from needs import skip_without
from paths import ROOT
from random_packed import TINY, write_random_packed

from gsb_vit.export.c_source import write_c
from gsb_vit.runtime.classifier import load

EXAMPLES = ROOT / "native" / "examples"
ESP_TIMER = "#include <stdint.h>\nstatic inline int64_t esp_timer_get_time(void) { static int64_t t; return t += 7; }\n"
ARDUINO = """
#include <stdint.h>
#include <stdio.h>
struct Port {
    void begin(long) {}
    void print(const char *text) { printf("%s", text); }
    void println(const char *text) { printf("%s\\n", text); }
    void println(unsigned long number) { printf("%lu\\n", number); }
};
static Port Serial;
static unsigned long micros() { static unsigned long t; return t += 7; }
static void delay(unsigned long) {}
"""
WARNINGS = ("-Wall", "-Wextra", "-Werror")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    write_random_packed(path, seed=31, **TINY)
    write_c(path, tmp_path, "reference")
    return load(path, engine="reference")


def expected(model, grey):
    rgb = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return model.class_names[int(np.argmax(model.logits(model.prepare(rgb)[None])[0]))]


def test_the_esp32_example_runs(model, tmp_path):
    needs_compiler("gcc")
    (tmp_path / "esp_timer.h").write_text(ESP_TIMER)
    (tmp_path / "start.c").write_text("void app_main(void);\nint main(void) { app_main(); return 0; }\n")
    sources = (EXAMPLES / "esp32-s3" / "main" / "main.c", tmp_path / "start.c", tmp_path / "model.c")
    run("gcc", "-std=gnu11", *WARNINGS, f"-I{tmp_path}", *sources, "-lm", "-o", tmp_path / "program")
    frame = np.zeros((96, 96))
    frame[32:64, 32:64] = 255
    first, second = run(tmp_path / "program").splitlines()
    assert first == "logits equal those of gsb-vit"
    assert second == f"{expected(model, frame)}; 7 us"


def test_the_arduino_sketch_runs(model, tmp_path):
    needs_compiler("g++")
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    sketch = (EXAMPLES / "arduino" / "classify" / "classify.ino").read_text()
    start = "int main() { setup(); loop(); return 0; }\n"
    (tmp_path / "sketch.cpp").write_text(f"#include <Arduino.h>\n{sketch}\n{start}")
    run("gcc", "-std=gnu11", "-Os", "-c", tmp_path / "model.c", "-o", tmp_path / "model.o")
    program = tmp_path / "program"
    run("g++", "-std=gnu++11", *WARNINGS, f"-I{tmp_path}", tmp_path / "sketch.cpp", tmp_path / "model.o", "-o", program)
    first, second = run(program).splitlines()
    assert first == "logits equal those of gsb-vit"
    height, width = model.architecture.image_size
    ramp = np.arange(width) * 255 // width + np.zeros((height, 1), int)
    assert second == f"{expected(model, ramp)}, microseconds: 7"


OTHERS = {  # an older relative of the ESP32's core, the ESP32-C3's kind of core, and one whose int is too small
    "xtensa-lx106-elf-gcc": ("-isystem", "/usr/include/newlib"),  # Debian has no C library for it
    "riscv64-unknown-elf-gcc": ("-march=rv32imc", "-mabi=ilp32", "-specs=picolibc.specs"),
    "avr-gcc": (),
}


@pytest.mark.parametrize("compiler", OTHERS)
def test_other_processors_compile_it_or_say_why_not(model, tmp_path, compiler):
    if shutil.which(compiler) is None:
        skip_without("C files", compiler)
    command = (compiler, "-std=c99", "-Os", *OTHERS[compiler], "-c", tmp_path / "model.c", "-o", tmp_path / "m.o")
    if compiler == "avr-gcc":
        with pytest.raises(AssertionError, match=r"int must have 32 bits"):
            run(*command)
    else:
        run(*command)
