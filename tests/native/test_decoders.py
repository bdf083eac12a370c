"""The decoders of gsb-vit-classify: JPEG, PNG and PPM with the pixels of Python, and what is refused."""

import io
import struct
from itertools import product

import numpy as np
import pytest
from c_decoders import NATIVE, Decoders
from native_build import needed, run
from needs import skip_without
from picture_files import chunk, png
from PIL import Image

from gsb_vit.data.pictures import open_picture
from gsb_vit.errors import InputError


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    try:
        return Decoders(tmp_path_factory.mktemp("decoders")).decode
    except FileNotFoundError as lack:
        skip_without("decoders of gsb-vit-classify", str(lack))


def smooth(rng, height, width):
    few = rng.integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def check_equal(decode, data):
    """What Python makes of the file is what it makes of the decoded pixels."""
    pixels, orientation = decode(data)
    upright = open_picture(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = open_picture(saved(upright, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(open_picture(data)))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_have_pillows_pixels(decode, subsampling, progressive):
    """Every width and height that is special to a filter, all qualities, with restart markers and without."""
    rng = np.random.default_rng(2)
    sizes = [*product((1, 2, 3, 4, 5), (1, 2, 3, 4, 5)), (8, 16), (17, 33), (40, 23), (64, 64)]
    for number, size in enumerate(sizes):
        image = smooth(rng, *size)
        if number % 5 == 0:
            image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        options = {"restart_marker_blocks": 2} if number % 3 == 0 else {}
        quality = int(rng.integers(1, 101))
        check_equal(
            decode,
            saved(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive, **options),
        )


def resampled(data, factors):
    """A JPEG of equal factors, its frame rewritten to say other ones: the same numbers, read as another picture."""
    at = data.index(b"\xff\xc0")
    frame = bytearray(data)
    height, width = struct.unpack(">HH", data[at + 5 : at + 9])
    blocks = (height // 8) * (width // 8)
    across, down = max(f >> 4 for f in factors), max(f & 15 for f in factors)
    per_unit = sum((f >> 4) * (f & 15) for f in factors)
    units = 3 * blocks // per_unit
    frame[at + 5 : at + 9] = struct.pack(">HH", 8 * down, 8 * across * units)
    for channel, factor in enumerate(factors):
        frame[at + 11 + 3 * channel] = factor
    return bytes(frame)


@pytest.mark.parametrize(
    "factors", [(0x12, 0x11, 0x11), (0x41, 0x11, 0x11), (0x14, 0x11, 0x11), (0x24, 0x11, 0x11), (0x22, 0x21, 0x12)]
)
def test_jpegs_of_rare_subsampling_have_pillows_pixels(decode, factors):
    grey = np.random.default_rng(3).integers(0, 256, (8 * 8, 8 * 9), dtype=np.uint8)
    image = Image.fromarray(np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1))
    # One table for all channels, so that blocks may change hands.
    data = saved(image, "JPEG", subsampling="4:4:4", qtables=[[3] * 64])
    data = resampled(data, factors)
    check_equal(decode, data)


def test_jpegs_of_grey_and_of_unconverted_colours(decode):
    image = smooth(np.random.default_rng(4), 21, 35)
    check_equal(decode, saved(image.convert("L"), "JPEG", quality=60))
    check_equal(decode, saved(image, "JPEG", quality=60, keep_rgb=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_read(decode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = smooth(np.random.default_rng(5), 12, 19)
    for kind in ("JPEG", "PNG"):
        data = saved(image, kind, exif=exif)
        assert decode(data)[1] == orientation
        check_equal(decode, data)
    # The other byte order, as cameras write it.
    big = b"Exif\0\0MM\0\x2a" + struct.pack(">IHHHII", 8, 1, 0x0112, 3, 1, orientation << 16) + bytes(4)
    data = saved(image, "JPEG", exif=big)
    assert decode(data)[1] == orientation
    check_equal(decode, data)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_pngs_have_pythons_pixels(decode, mode):
    rng = np.random.default_rng(6)
    image = smooth(rng, 23, 31).convert("RGBA")
    image.putalpha(Image.fromarray(rng.integers(0, 256, (23, 31), dtype=np.uint8)))
    check_equal(decode, saved(image.convert("RGB").convert(mode) if mode in "1LP" else image.convert(mode), "PNG"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_pngs_of_few_bits(decode, bits):
    rng = np.random.default_rng(bits)
    rows = b"".join(b"\0" + rng.bytes((17 * bits + 7) // 8) for _ in range(5))
    palette = chunk(b"PLTE", rng.bytes(3 << bits))
    check_equal(decode, png(17, 5, bits, 3, rows, palette))
    check_equal(decode, png(17, 5, bits, 3, rows, palette + chunk(b"tRNS", rng.bytes(1 << bits))))
    check_equal(decode, png(17, 5, bits, 0, rows))
    key = chunk(b"tRNS", b"\0\1")
    if bits in (1, 8):
        check_equal(decode, png(17, 5, bits, 0, rows, key))
    else:  # Pillow compares the key with pixels that it has widened; by the standard it is a value before that
        pixels = decode(png(17, 5, bits, 0, rows, key))[0]
        assert ((pixels[:, :, 3] == 0) == (pixels[:, :, 0] == 255 // ((1 << bits) - 1))).all()


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_pngs_of_16_bits(decode, colour, channels):
    rng = np.random.default_rng(7)
    rows = b"".join(b"\0" + rng.bytes(2 * 13 * channels) for _ in range(6))
    check_equal(decode, png(13, 6, 16, colour, rows))
    if colour == 0:
        check_equal(decode, png(13, 6, 16, colour, rows, chunk(b"tRNS", rows[1:3])))
    if colour == 2:
        data = png(13, 6, 16, colour, rows, chunk(b"tRNS", rows[1:7]))
        with pytest.raises(ValueError, match="one transparent colour are not read"):
            decode(data)
        with pytest.raises(InputError, match="one transparent colour are not read"):
            open_picture(data)


def test_pngs_with_one_transparent_colour(decode):
    rows = b"".join(b"\0" + bytes([1, 2, 3, 4, 5, 6]) for _ in range(4))
    data = png(2, 4, 8, 2, rows, chunk(b"tRNS", b"\0\4\0\5\0\6"))
    check_equal(decode, data)
    assert decode(data)[0][0, :, 3].tolist() == [255, 0]


def test_ppms_have_pythons_pixels(decode):
    image = smooth(np.random.default_rng(8), 9, 14)
    check_equal(decode, saved(image, "PPM"))
    check_equal(decode, saved(image.convert("L"), "PPM"))
    check_equal(decode, b"P5 # made by hand\n3 # width\n2\n255\n" + bytes(range(32, 38)))


def test_what_is_damaged_is_refused(decode):
    """In every place that a file may be cut, or with a byte that is wrong in a PNG."""
    image = smooth(np.random.default_rng(9), 20, 30)
    for kind in ("JPEG", "PNG", "PPM"):
        data = saved(image, kind)
        for end in range(len(data)):
            with pytest.raises(ValueError, match=r"damaged|truncated|not a|no "):
                decode(data[:end])
    for at in range(8, len(data := saved(image, "PNG"))):
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            decode(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])


def damaged_files():
    """Files of all kinds with a byte changed or cut off."""
    image = smooth(np.random.default_rng(10), 24, 40)
    files = [saved(image, "JPEG", progressive=True), saved(image, "JPEG", subsampling="4:2:2"), saved(image, "PNG")]
    for data in files:
        for at in range(2, len(data), 3):
            yield data[:at] + bytes([data[at] ^ 0x81]) + data[at + 1 :]
            yield data[:at]


def test_damaged_files_end_alike_each_time(decode):
    for data in damaged_files():
        results = []
        for _ in range(2):
            try:
                results.append(decode(data)[0].tobytes())
            except ValueError as refusal:
                results.append(str(refusal))
        assert results[0] == results[1]


DECODE_ALL = """
#include <stdio.h>
#include <stdlib.h>
#include "picture_file.h"
int main(void) {
    uint32_t size;
    int decoded = 0;
    while (fread(&size, 4, 1, stdin) == 1) {
        uint8_t* bytes = malloc(size ? size : 1); /* not a byte more, so that what is read behind it is seen */
        if (!bytes || fread(bytes, 1, size, stdin) != size) return 1;
        struct picture picture;
        decoded += decode_picture(bytes, size, &picture) == NULL;
        free(picture.pixels), free(bytes);
    }
    return printf("%d decoded\\n", decoded) < 0;
}
"""


def test_no_sanitizer_complains_of_damaged_files(tmp_path):
    (tmp_path / "all.c").write_text(DECODE_ALL)
    sources = [NATIVE / "classify" / name for name in ("picture_file.c", "jpeg.c", "png.c")]
    flags = ["-std=c99", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=shift"]
    includes = [f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'classify'}"]
    done = run(needed("cc"), *flags, *includes, tmp_path / "all.c", *sources, "-o", tmp_path / "all", ok=False)
    if done.returncode:
        skip_without("sanitizers", "programs of cc with -fsanitize=address,undefined")
    files = b"".join(struct.pack("=I", len(data)) + data for data in damaged_files())
    done = run(tmp_path / "all", input=files)
    assert int(done.stdout.split()[0]) > 20


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a picture; give one of the formats JPEG, PNG, PPM"),
        (b"GIF89a" + bytes(30), "not a picture"),
        (b"P6 2 1 65535\n" + bytes(12), "not a PPM or PGM of 8 bits"),
        (b"P6 0 1 255\n123", "not a PPM or PGM of 8 bits"),
        (b"P6 100000 100000 255\n1", "more than 64 megapixels"),
        (b"P6 99999999999999999999 1 255\n1", "not a PPM"),
        (png(60000, 60000, 8, 2, b""), "more than 64 megapixels"),
        (png(0, 5, 8, 2, b""), "a picture without pixels"),
        (saved(Image.new("CMYK", (8, 8)), "JPEG"), "a JPEG in CMYK; save it as RGB"),
    ],
)
def test_what_is_no_picture_is_refused(decode, data, why):
    with pytest.raises(ValueError, match=why):
        decode(data)
