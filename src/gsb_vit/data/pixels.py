"""Pixels of any mode → 8-bit RGB: scaled from the range that the file declares, or refused.

| pixels | range |
|---|---|
| 8 bits and fewer | as they are |
| 16 bits, grey or colour | 0 … 65535; a TIFF of 12 bits 0 … 4095 |
| whole numbers of 32 bits, signed ones of 16 bits | that of the TIFF's tags; without them refused |
| floats | that of the TIFF's tags; without them 0 … 1, other values are refused |

Tags (MaxSampleValue, SMaxSampleValue) count where they name 1 or a whole number of bits, as 4095 does: many programs
write the largest value found, which is no range. 16-bit values that use 14 bits or fewer are read as 16 bits, with a
``PictureWarning`` once a folder. Where a TIFF says that zero is white, grey values are turned round.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsb_vit.errors import InputError, PictureWarning

_SIXTEEN = 65535
_DARK = 1 << 14  # 16-bit values below it are perhaps of a camera with fewer bits
_BAND = 1 << 20  # pixels that are converted at a time, so that no second picture of floats is in memory
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_BITS, _PHOTOMETRIC, _MIN, _MAX, _SMIN, _SMAX, _ORIENTATION, _FORMAT = 258, 262, 280, 281, 340, 341, 274, 339
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_warned: set[str] = set()


@dataclass(frozen=True)
class _Declared:
    """What a file says of its pixels: the value that is white (None: nothing), by a tag or not, and the direction."""

    white: int | None
    by_tag: bool
    odd: str = ""  # a range in the tags that is no whole number of bits
    inverted: bool = False
    wide_colours: bool = False  # 16 bits a colour, of which Pillow keeps the upper eight


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decode an image to 8-bit RGB, upright, on white. Raises InputError for pixels whose range is unknown."""
    declared = _declared(image)  # before loading, which forgets it
    if 2 in getattr(image, "tag_v2", {}).get(_FORMAT, ()) and image.mode not in (*_GREY_16, "I"):
        raise InputError(f"{name}: signed numbers are no colours; save it with 8 or 16 bits, unsigned")
    image.load()
    orientation = image.getexif().get(_ORIENTATION)
    if image.mode in (*_GREY_16, "I", "F"):
        rgb = _from_wide(np.asarray(image), declared, name, image.info.get("transparency")).convert("RGB")
    elif image.mode in _ALPHA or "transparency" in image.info:
        if declared.wide_colours and "transparency" in image.info:
            raise InputError(f"{name}: 16 bits with one transparent colour are not read; save it with 8 bits")
        rgb = _on_white(image)
    elif image.mode in _PLAIN:
        rgb = image.convert("RGB")
    else:
        raise InputError(f"{name}: pixels of mode {image.mode} have no known colours here; save it as RGB")
    if declared.wide_colours and 0 < (highest := _highest_colour(image)) < _DARK >> 8:
        _warn_dark(name, 256 * highest + 255)
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def from_array(array: NDArray[Any]) -> Image.Image:
    """Read uint8 or uint16 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Raises InputError for another shape or type."""
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_fits or array.size == 0 or array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture; "
            "give uint8 or uint16 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.dtype == np.uint16:
        colours = array[..., :3] if array.ndim == 3 else array
        if 0 < int(colours.max()) < _DARK:
            _warn_dark("an array", int(colours.max()))
        array = _to_8_bits(array, _SIXTEEN)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)), "the picture")


def _declared(image: Image.Image) -> _Declared:
    tags: Any = getattr(image, "tag_v2", {})
    mode, format_ = image.mode, image.format
    inverted = tags.get(_PHOTOMETRIC) == 0 and mode in (*_GREY_16, "F")  # Pillow turns 8 bits round, and no others
    wide = mode not in (*_GREY_16, "I", "F") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    low, high = _extreme(tags, _SMIN, _MIN, min), _extreme(tags, _SMAX, _MAX, max)
    if high is not None:
        whole = high in {(1 << bits) - 1 for bits in range(8, 33)} or (mode == "F" and high == 1)
        if whole and not low:
            return _Declared(int(high), True, "", inverted, wide)
    odd = "" if high is None else f"{low or 0:g} … {high:g}"
    if mode in _GREY_16:
        bits = tags.get(_BITS, (16,))
        return _Declared(4095 if bits == (12,) else _SIXTEEN, bits == (12,), odd, inverted)
    if mode == "I" and format_ in ("PNG", "PPM"):
        return _Declared(_SIXTEEN, False)
    return _Declared(1 if mode == "F" and not odd else None, False, odd, inverted, wide)


def _extreme(tags: Any, first: int, second: int, choose: Any) -> float | None:
    value = tags.get(first, tags.get(second))
    return None if value is None else float(choose(value) if isinstance(value, tuple) else value)


def _from_wide(values: NDArray[Any], declared: _Declared, name: str, transparent: Any) -> Image.Image:
    """Greyscale (H, W) of more than 8 bits → 8 bits."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():  # a NaN anywhere is the smallest and the largest
        raise InputError(f"{name} holds numbers that are not finite; save it as an 8-bit or 16-bit picture")
    if declared.white is None:
        says = f"its tags say {declared.odd}, which is no whole number of bits" if declared.odd else "it does not say"
        raise InputError(
            f"{name}: which value is white? Values are {low:g} … {high:g}, and {says}; save it with 8 or 16 bits"
        )
    if low < 0 or high > declared.white:
        says = "as it says" if declared.by_tag else "as such pictures have"
        raise InputError(
            f"{name}: values {low:g} … {high:g} are not within 0 … {declared.white}, {says}; save it with 8 or 16 bits"
        )
    if declared.white == _SIXTEEN and not declared.by_tag and 0 < high < _DARK:
        _warn_dark(name, int(high))
    grey = _to_8_bits(values, declared.white)
    if declared.inverted:
        np.subtract(255, grey, out=grey)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _to_8_bits(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    """0 … white → 0 … 255, to the nearest."""
    result = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _BAND // max(values[0].size, 1))
    for top in range(0, len(values), rows):
        band = values[top : top + rows].astype(np.float64)
        result[top : top + rows] = np.rint(band * 255 / white)
    return result


def _on_white(image: Image.Image) -> Image.Image:
    """Lay what is transparent on white, some rows at a time."""
    width, height = image.size
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        band = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return result


def _highest_colour(image: Image.Image) -> int:
    extremes: Any = image.getextrema()
    bands = extremes if isinstance(extremes[0], tuple) else (extremes,)
    colours = bands[:1] if image.mode in ("L", "LA", "La") else bands[:3]
    return int(max(high for _, high in colours))


def _warn_dark(name: str, highest: int) -> None:
    """Say once a folder that 16-bit values are small. A black picture is only black."""
    folder = str(Path(name).parent)
    if folder in _warned:
        return
    _warned.add(folder)
    warnings.warn(
        f"{name}: its 16-bit values end at {highest}, as if they had {highest.bit_length()} bits; they are read as 16 "
        "bits, so the picture is dark. Declare MaxSampleValue in a TIFF, or scale the values (said once a folder)",
        PictureWarning,
        stacklevel=2,
    )
