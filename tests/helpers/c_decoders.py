"""The decoders of ``gsb-vit-classify`` (native/classify) as a shared library that Python calls."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

NATIVE = Path(__file__).parents[2] / "native"


class _Picture(ctypes.Structure):
    _fields_ = (
        ("pixels", ctypes.POINTER(ctypes.c_uint8)),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("format", ctypes.c_int),
        ("orientation", ctypes.c_int),
    )


class Decoders:
    """Compiled once into a folder. Raises FileNotFoundError where there is no C compiler."""

    def __init__(self, folder, *flags):
        compiler = shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError("cc")
        sources = [NATIVE / "classify" / name for name in ("picture_file.c", "jpeg.c", "png.c")]
        library = Path(folder) / "decoders.so"
        command = [compiler, "-std=c99", "-O1", "-shared", "-fPIC", *flags, f"-I{NATIVE / 'include'}", *sources]
        subprocess.run([*map(str, command), "-o", str(library)], check=True, capture_output=True)
        self._library = ctypes.CDLL(str(library))
        self._library.decode_picture.restype = ctypes.c_char_p

    def decode(self, data):
        """Return a file's pixels (H, W, C) uint8 and its orientation. Raises ValueError with what is wrong."""
        picture = _Picture()
        wrong = self._library.decode_picture(data, ctypes.c_size_t(len(data)), ctypes.byref(picture))
        if wrong:
            assert not picture.pixels
            raise ValueError(wrong.decode())
        shape = (picture.height, picture.width, picture.format)
        pixels = np.ctypeslib.as_array(picture.pixels, shape).copy()
        self._library.free(picture.pixels)
        return pixels, picture.orientation
