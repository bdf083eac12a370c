"""Models as C files, compiled here and called, for tests."""

import ctypes
import shutil
import subprocess

import numpy as np
from needs import skip_without
from paths import ROOT

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wshadow", "-pedantic", "-Werror")
EXACT = "-ffp-contract=off"
CORTEX_M = ROOT / "native" / "examples" / "cortex-m"
_PART = "C files"
_CLANG = next((name for name in ("clang", *(f"clang-{n}" for n in range(25, 13, -1))) if shutil.which(name)), "clang")
COMPILERS = ("gcc", _CLANG)
LEVELS = ("-O0", "-Os", "-O2")


def needs_compiler(compiler):
    """Skip the test where there is no such compiler."""
    if shutil.which(compiler) is None:
        skip_without(_PART, compiler)


def run(*command, **options):
    """Run a command, which has to succeed, and return what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr).decode(errors='replace')[-4000:]}"
    return done.stdout.decode()


class CModel:
    """The model.c of a folder, compiled with ``flags`` and loaded."""

    def __init__(self, folder, made, architecture, compiler="gcc", *flags):
        needs_compiler(compiler)
        library = folder / f"model_{abs(hash((compiler, flags)))}.so"
        run(compiler, *WARNINGS, *flags, "-shared", "-fPIC", folder / "model.c", "-o", library, "-lm")
        self._library = ctypes.CDLL(str(library))
        self._library.model_prepare.restype = ctypes.c_void_p
        self._library.model_class_name.restype = ctypes.c_char_p
        self._a = architecture
        self._arena = np.full(made.arena_bytes // 8 + 3, np.nan)  # whatever was there before
        self._arena[-1] = 42

    def _call(self, name, *arguments):
        found = getattr(self._library, f"model_{name}")(
            *(one.ctypes.data_as(ctypes.c_void_p) if isinstance(one, np.ndarray) else one for one in arguments)
        )
        assert self._arena[-1] == 42
        return found

    def logits(self, pictures):
        """Uint8 (B, H, W, 3) → float32 (B, K), and the worst status."""
        out = np.zeros((len(pictures), self._a.num_classes), np.float32)
        status = [
            self._call("logits", picture.copy(), self._arena, row) for picture, row in zip(pictures, out, strict=True)
        ]
        return out, min(status)

    def prepare(self, pixels, orientation=1, stride=0, size=None):
        """Uint8 (h, w, channels) → (H, W, 3), or None where it is refused; ``size`` says (w, h) of padded rows."""
        height, width, channels = pixels.shape
        width, height = size or (width, height)
        where = self._call(
            "prepare", pixels, width, height, ctypes.c_size_t(stride), channels, orientation, self._arena
        )
        shape = (*self._a.image_size, 3)
        if where is None:
            return None
        return np.ctypeslib.as_array((ctypes.c_uint8 * int(np.prod(shape))).from_address(where)).reshape(shape).copy()

    def picture_logits(self, pixels):
        """Uint8 (h, w, channels) → float32 (K) and the status."""
        height, width, channels = pixels.shape
        out = np.zeros(self._a.num_classes, np.float32)
        size = ctypes.c_size_t(pixels.strides[0])
        return out, self._call("picture_logits", pixels, width, height, size, channels, 1, self._arena, out)

    def probabilities(self, logits):
        """Float32 (K) → float64 (K)."""
        out = np.zeros(self._a.num_classes)
        self._call("probabilities", logits, out)
        return out

    def is_unknown(self, logits):
        """1, 0, or −1 where there is no threshold."""
        return self._call("is_unknown", logits)

    def best(self, logits):
        """The class with the largest logit."""
        return self._call("best", logits)

    def class_name(self, index):
        """Bytes, or None."""
        return self._library.model_class_name(index)

    def check(self):
        """What model_check says."""
        return self._call("check", self._arena)


BOARDS = {
    "Cortex-M4F": ("mps2-an386", 25, ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard")),
    "Cortex-M7": ("mps2-an500", 25, ("-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard")),
    "Cortex-M55": ("mps3-an547", 32, ("-mcpu=cortex-m55", "-mfloat-abi=hard")),
}


def needs_cortex_m():
    """Skip the test where the cross compiler, its C library or the emulator is missing."""
    lacking = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
    if lacking:
        skip_without("Cortex-M", *lacking)
    if subprocess.run(
        ["arm-none-eabi-gcc", "-E", "-x", "c", "-"], input=b"#include <math.h>", capture_output=True
    ).returncode:
        skip_without("Cortex-M", "libnewlib-arm-none-eabi")


def pictures_header(pictures):
    """The text of pictures.h of the example: uint8 (n, h, w, 3)."""
    count, height, width, _ = pictures.shape
    rows = ",\n".join("{" + ",".join(map(str, picture.reshape(-1))) + "}" for picture in pictures)
    return (
        f"enum {{ PICTURE_COUNT = {count}, PICTURE_HEIGHT = {height}, PICTURE_WIDTH = {width} }};\n"
        f"static const uint8_t pictures[{count}][{height * width * 3}] = {{\n{rows}}};\n"
    )


def run_on_board(folder, board, *flags):
    """Build the example with the model.c and pictures.h of a folder and run it: → [(word, rest of the line)]."""
    machine, _, cpu = BOARDS[board]
    program = folder / f"{machine}.elf"
    sources = (CORTEX_M / "main.c", CORTEX_M / "startup.c", folder / "model.c")
    linked = (
        "-nostartfiles",
        "-specs=nano.specs",
        "-specs=nosys.specs",
        "-T",
        CORTEX_M / "device.ld",
        "-Wl,--gc-sections",
    )
    defined = ['-DPICTURES="pictures.h"', f"-I{folder}", "-ffunction-sections"]
    run("arm-none-eabi-gcc", *WARNINGS, *flags, *cpu, *defined, *linked, *sources, "-lm", "-o", program)
    emulator = ("qemu-system-arm", "-M", machine, "-icount", "shift=0", "-display", "none", "-monitor", "none")
    to_here = (
        "-serial",
        "none",
        "-chardev",
        "stdio,id=here",
        "-semihosting-config",
        "enable=on,target=native,chardev=here",
    )
    said = run(*emulator, *to_here, "-kernel", program, stdin=subprocess.DEVNULL)
    return [tuple(line.partition(" ")[::2]) for line in said.splitlines()]
