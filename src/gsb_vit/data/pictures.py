"""Pictures from files that nobody vouches for: known formats, a bounded number of pixels, regular files only."""

import contextlib
import io
import os
import re
import struct
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO, Protocol, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsb_vit import limits
from gsb_vit.errors import InputError
from gsb_vit.files import as_path, open_regular

from .pixels import from_array, to_rgb


class Readable(Protocol):
    """What has a file's bytes: ``read(size)`` gives at most ``size`` of them."""

    def read(self, size: int, /) -> bytes: ...


Picture = Union[str, "os.PathLike[str]", bytes, Readable, Image.Image, NDArray[Any]]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: a drive has one

MAX_PIXELS = 64_000_000  # of a picture, unless the caller or MAX_PIXELS_VARIABLE says otherwise
MAX_PIXELS_VARIABLE = "GSB_VIT_MAX_PIXELS"
BYTES_PER_PIXEL = 16  # a file with more bytes than that for the most pixels allowed is no picture
_HEIF = "pillow_heif"  # a package of its own, the extra ``heif``
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# The formats that are read and Pillow's module of each, HEIF where its package is installed. A file's first bytes
# decide, whatever its name says. What is
# not here is not tried: Pillow hands EPS to Ghostscript, and many of its other decoders see few files and fewer tests.
FORMATS = {
    "AVIF": "AvifImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "HEIF": _HEIF,
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "PPM": "PpmImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# What Pillow's decoders raise on a damaged file: each format trips over its own broken header in its own way.
_DAMAGED = (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


def open_picture(picture: Picture, *, max_pixels: int | None = None) -> Image.Image:
    """Open a picture as 8-bit RGB.

    ``picture`` is a path, a file's bytes, a file object opened in binary mode (read from where it stands), a Pillow
    image, or an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16. URLs are refused.
    The EXIF orientation is applied; transparency is laid on white; palettes, greyscale and CMYK are converted; values
    of more than 8 bits are scaled from the range that the file declares (``data/pixels.py``) rather than
    clipped. Only the first frame of an animation is read.

    A picture has at most ``max_pixels`` pixels, by default those of the environment variable ``GSB_VIT_MAX_PIXELS`` or
    else 64 million. That is asked before anything is decoded. Arrays are in memory already and have no limit.

    Raises:
        InputError: for a missing, truncated or unreadable file, what is no regular file, a URL, a format that is not
            one of ``FORMATS``, too many pixels, pixels whose range is unknown, and an array of another shape or type.
    """
    limit = pixel_limit(max_pixels)
    if isinstance(picture, np.ndarray):
        return from_array(picture)
    if isinstance(picture, Image.Image):
        with _damage("the picture"):
            return _decode(picture, "the picture", limit)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        data = bytes(picture)
        return _from_file(
            io.BytesIO(data), len(data), f"a picture of {len(data)} bytes (a path is given as str)", limit
        )
    if callable(getattr(picture, "read", None)):
        return _from_stream(picture, limit)
    if not isinstance(picture, (str, os.PathLike)):
        raise InputError(
            f"a {type(picture).__name__} is not a picture; give a path, the bytes of a file, a file object, a Pillow "
            "image or a NumPy array"
        )
    path = as_path(picture, "a picture file, its bytes, a file object, a Pillow image or an array")
    if _URL.match(str(picture)) and not path.exists():
        raise InputError(f"{picture}: URLs are not fetched; download the picture and give its path or bytes")
    with open_regular(path, "a picture file") as file:
        return _from_file(file, os.fstat(file.fileno()).st_size, str(path), limit)


def _from_stream(stream: Any, limit: int) -> Image.Image:
    """Read a file object, at most one byte more than a picture may have."""
    name = f"the file {getattr(stream, 'name', None) or type(stream).__name__}"
    try:
        data = stream.read(BYTES_PER_PIXEL * limit + 1)
    except InputError:  # a member of an archive says what it needs
        raise
    except (OSError, ValueError) as error:  # a closed file, a file of text that is not UTF-8
        raise InputError(f"{name}: cannot be read ({' '.join(str(error).split())}); open it in binary mode") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InputError(f"{name} gives {type(data).__name__}, not bytes; open it in binary mode")
    return _from_file(io.BytesIO(data), len(data), name, limit)


def _from_file(file: BinaryIO, size: int, name: str, limit: int) -> Image.Image:
    if size > BYTES_PER_PIXEL * limit:
        raise InputError(f"{name}: {size / 1e6:,.0f} MB are more than {limit / 1e6:g} megapixels take; {_HINT}")
    with _damage(name), _identify(file, name, limit) as image:
        return _decode(image, name, limit)


_HINT = f"give a smaller picture, or raise max_pixels (--max-megapixels, {MAX_PIXELS_VARIABLE})"


def pixel_limit(max_pixels: int | None) -> int:
    """The most pixels of a picture. Raises InputError for what is no whole number above 0."""
    return limits.limit(max_pixels, "max_pixels", MAX_PIXELS_VARIABLE, MAX_PIXELS)


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: the picture cannot be decoded ({reason}); is it truncated?") from error


def _identify(file: BinaryIO, name: str, limit: int) -> Image.Image:
    """Open a file with the decoder that its first bytes name; nothing is decoded yet.

    ``Image.open`` would do the same, but counts pixels after the decoder has made room for them, and by a limit that
    belongs to the whole process.
    """
    prefix = file.read(30)
    _require_few(*_webp_size(prefix), name, limit)
    problem: object = None
    for format_, module in FORMATS.items():
        try:
            if module == _HEIF:
                import_module(_HEIF).register_heif_opener()
            else:
                import_module(f"PIL.{module}")
            factory, accept = Image.OPEN[format_]
            if accept is None or accept(prefix[:16]) is not True:
                continue
            file.seek(0)
            return factory(file, name)
        except (ImportError, KeyError):  # this Pillow lacks the format
            continue
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            problem = error
    if problem is None and prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS and not can_open_heif():
        raise InputError(f"{name}: a HEIC picture; {NEEDS_HEIF}, or convert it to PNG or JPEG")
    reason = f" ({' '.join(str(problem).split())})" if problem else ""
    raise InputError(f"{name}: not a picture{reason}; give one of the formats {', '.join(FORMATS)}")


NEEDS_HEIF = "pip install 'gsb-vit[heif]'"


@cache
def can_open_heif() -> bool:
    """Whether HEIC and HEIF pictures are read here: pillow-heif is installed."""
    return find_spec(_HEIF) is not None


def _webp_size(prefix: bytes) -> tuple[int, int]:
    """Width and height of a WebP file by its first 30 bytes, (0, 0) of another: its decoder starts with the canvas."""
    if len(prefix) < 30 or prefix[:4] != b"RIFF" or prefix[8:12] != b"WEBP":
        return 0, 0
    kind = prefix[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(prefix[24:27], "little"), 1 + int.from_bytes(prefix[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(prefix[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(prefix[26:28], "little") & 0x3FFF, int.from_bytes(prefix[28:30], "little") & 0x3FFF


def _require_few(width: int, height: int, name: str, limit: int) -> None:
    if width * height > limit:
        raise InputError(
            f"{name}: {width} × {height} are {width * height / 1e6:,.1f} megapixels, more than {limit / 1e6:g}; {_HINT}"
        )


def _decode(image: Image.Image, name: str, limit: int) -> Image.Image:
    _require_few(*image.size, name, limit)
    if 0 in image.size:
        raise InputError(f"{name}: {image.width} × {image.height} pixels are no picture")
    tags: Any = getattr(image, "tag_v2", {})
    if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
        _require_few(int(tags[_TILE_WIDTH]), int(tags[_TILE_LENGTH]), f"{name}: a tile", limit)
    return to_rgb(image, name)
