"""Picture files byte by byte, for what Pillow does not write."""

import struct
import zlib


def chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, colour, data, extra=b""):
    """A PNG file of raw scanlines, each with its filter byte; ``extra`` chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(data, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(bits, data, width, *, photometric=1, sample_format=1, extra=()):
    """A little-endian TIFF of one row and one sample a pixel; ``extra`` are more entries (tag, type, count, value)."""
    entries = [
        *((256, 4, 1, width), (257, 4, 1, 1), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, photometric)),
        *((273, 4, 1, 0), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, len(data)), (339, 3, 1, sample_format), *extra),
    ]
    offset = 8 + 2 + 12 * len(entries) + 4
    body = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in sorted(entries):
        body += struct.pack("<HHI", tag, kind, count)
        body += struct.pack("<f" if kind == 11 else "<I", offset if tag == 273 else value)
    return body + struct.pack("<I", 0) + data


def webp_bomb(width=16383, height=16383):
    """A WebP file of 30 bytes that asks for a canvas of ``width`` × ``height``."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
