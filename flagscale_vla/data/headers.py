"""How large a picture is, read from the few bytes that say so: an index asks this of every picture there is.

Pillow reads tables and notes on the way, which takes some twenty times as long. What is not plain is left to it, and so
is the word on what is wrong with a picture.
"""

from __future__ import annotations

import zlib

from flagscale_vla.data.images import MOST_PIXELS, check_scans, open_image
from flagscale_vla.data.shards import JPEG_MAGIC, PNG_MAGIC

JPEG_END = b"\xff\xd9"
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a frame's header (ITU-T T.81, table B.1)."""
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
FRAME_BYTES = 9
"""Marker, length, precision, height and width."""
BARE = frozenset(range(0xD0, 0xDA)) | {0x01, 0xFF}
"""Markers without a length, and filling."""
SCAN = 0xDA
PNG_HEADER = slice(12, 29)
"""Type and content of a PNG's first chunk; its checksum follows."""


def picture_sides(name: str, encoded: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG or PNG.

    Raises:
        BadSampleError: not a JPEG or PNG, far too large, or of too many scans.
    """
    sides = _jpeg_sides(name, encoded) if encoded.startswith(JPEG_MAGIC) else _png_sides(encoded)
    if sides is not None and 0 < sides[0] * sides[1] <= MOST_PIXELS:
        return sides
    picture = open_image(name, encoded)
    return picture.height, picture.width


def _jpeg_sides(name: str, encoded: bytes) -> tuple[int, int] | None:
    """From the frame's header of a JPEG that has an end; None where something is odd."""
    if not encoded.endswith(JPEG_END):
        return None
    at = 2
    while at + FRAME_BYTES <= len(encoded):
        marker = encoded[at + 1]
        if encoded[at] != 0xFF or marker in BARE or marker == SCAN:
            return None
        if marker in FRAMES:
            if marker in PROGRESSIVE:
                check_scans(name, encoded)
            return int.from_bytes(encoded[at + 5 : at + 7], "big"), int.from_bytes(encoded[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def _png_sides(encoded: bytes) -> tuple[int, int] | None:
    header = encoded[PNG_HEADER]
    sound = encoded.startswith(PNG_MAGIC) and header[:4] == b"IHDR"
    if not sound or zlib.crc32(header).to_bytes(4, "big") != encoded[PNG_HEADER.stop : PNG_HEADER.stop + 4]:
        return None
    return int.from_bytes(header[8:12], "big"), int.from_bytes(header[4:8], "big")
