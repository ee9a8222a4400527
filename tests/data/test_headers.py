"""Sides of pictures from a few bytes: Pillow's own, and Pillow's word on what is wrong."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from flagscale_vla.config.image import Decoder, PixelLimits
from flagscale_vla.data import headers
from flagscale_vla.data.decoders import load
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.headers import picture_sides
from flagscale_vla.data.images import open_image
from tests.samples import encode_picture, picture


def encode(mode: str, sides: tuple[int, int], kind: str, **options: object) -> bytes:
    pixels = picture(np.random.default_rng(0), *sides)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


SCAN = b"\xff\xda"
EXIF = PIL.Image.Exif()
EXIF[0x0112] = 6
PLAIN = {
    "baseline": encode("RGB", (48, 65), "JPEG"),
    "progressive": encode("RGB", (31, 200), "JPEG", progressive=True),
    "gray": encode("L", (1, 17), "JPEG"),
    "cmyk": encode("CMYK", (40, 30), "JPEG"),
    "turned": encode("RGB", (20, 30), "JPEG", exif=EXIF),
    "noted": encode("RGB", (20, 30), "JPEG", comment=b"x" * 3000),
    "png": encode("RGB", (33, 44), "PNG"),
    "palette": encode("P", (5, 300), "PNG"),
    "alpha": encode("RGBA", (9, 9), "PNG"),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_pictures_need_no_pillow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_image(name, PLAIN[name])
    monkeypatch.setattr(headers, "open_image", lambda *_: pytest.fail("opened"))
    assert picture_sides(name, PLAIN[name]) == (expected.height, expected.width)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damage_is_told_by_pillow_or_found_when_decoded(kind: str) -> None:
    """Where both give sides, they are the same; where only Pillow refuses, so will the decoder."""
    whole = encode_picture(picture(np.random.default_rng(1), 40, 50), kind)
    generator = np.random.default_rng(2)
    for _ in range(300):
        content = bytearray(whole[: generator.integers(len(whole)) if generator.random() < 0.3 else len(whole)])
        for place in generator.integers(min(len(content), 700), size=2) if content else ():
            content[place] = generator.integers(256)
        found = []
        for sides in (picture_sides, lambda *picture: open_image(*picture).size[::-1]):
            try:
                found.append(sides("picture", bytes(content)))
            except BadSampleError as error:
                found.append(str(error))
        ours, theirs = found
        assert ours == theirs or (isinstance(ours, tuple) and isinstance(theirs, str))


def test_a_cut_header_and_a_bomb_are_refused() -> None:
    with pytest.raises(BadSampleError, match="not a JPEG or PNG"):
        picture_sides("cut", PLAIN["baseline"][:100])
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = PLAIN["png"][:12] + header + zlib.crc32(header).to_bytes(4, "big") + PLAIN["png"][33:]
    with pytest.raises(BadSampleError):
        picture_sides("bomb", bomb)


def test_a_progressive_picture_of_too_many_scans_is_refused() -> None:
    whole = PLAIN["progressive"]
    last = whole[whole.rindex(SCAN) : -2]
    crowded = {scans: whole[:-2] + last * (scans - whole.count(SCAN)) + whole[-2:] for scans in (100, 101)}
    assert picture_sides("most", crowded[100]) == (31, 200)
    # With a byte behind its end, a picture is left to Pillow.
    for content in (crowded[101], crowded[101] + b"\0"):
        for read in (picture_sides, open_image, load_small):
            with pytest.raises(BadSampleError, match="a progressive JPEG of 101 scans; at most 100 are read"):
                read("crowd", content)
    # What looks like scans in a plain picture's note is none.
    noted = encode("RGB", (20, 30), "JPEG", comment=SCAN * 200)
    assert picture_sides("noted", noted) == (20, 30)
    assert load_small("noted", noted).shape == (28, 28, 3)


def load_small(name: str, encoded: bytes) -> NDArray[np.uint8]:
    return load(name, encoded, PixelLimits(28 * 28, 28 * 28), Decoder.turbo)
