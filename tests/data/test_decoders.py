"""Back ends for pictures: how far from Pillow's each may be, and that all refuse the same."""

from __future__ import annotations

import io
from importlib.util import find_spec

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.image import Decoder, PixelLimits
from flagscale_vla.data import decoders, images
from flagscale_vla.data.decoders import fit, load, open_backend, scaled_sides
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.pictures import PictureReader
from tests.samples import encode_picture, image_config, picture

LIMITS = PixelLimits(64 * 28 * 28, 128 * 28 * 28)
"""EO-1's."""
SMALL = PixelLimits(28 * 28, 20 * 28 * 28)
HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
NEEDS_DALI = pytest.mark.skipif(not HAS_DALI, reason="needs nvidia-dali-cuda120")
HERE = [
    Decoder.pillow,
    Decoder.turbo,
    pytest.param(Decoder.dali, marks=NEEDS_DALI),
    pytest.param(Decoder.dali_gpu, marks=[NEEDS_DALI, pytest.mark.gpu]),
]


def scene(seed: int, height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    """A picture with the spectrum of photographs (amplitudes fall as 1/frequency; Field 1987) and some hard edges."""
    generator = np.random.default_rng(seed)
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(down, right), 1 / width)
    channels = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * generator.random(amplitude.shape))
        values = np.fft.irfft2(amplitude * phase, (height, width))
        channels.append(128 + 50 * (values - values.mean()) / values.std())
    pixels = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    for _ in range(6):
        top, left = generator.integers(0, (height, width))
        pixels[top : top + height // 8, left : left + width // 16] = generator.integers(0, 256, 3)
    return pixels


def jpeg(pixels: NDArray[np.uint8], **settings: object) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int64]:
    assert first.shape == second.shape
    assert first.dtype == second.dtype == np.uint8
    return np.abs(first.astype(np.int64) - second)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_turbo_decodes_what_pillow_decodes(subsampling: int) -> None:
    for encoded in (
        jpeg(scene(0, 93, 117), subsampling=subsampling),
        jpeg(scene(1, 64, 80), subsampling=subsampling, progressive=True),
        jpeg(scene(2, 31, 33)[..., 0]),
    ):
        full = images.decode("k.a", encoded)
        assert np.array_equal(open_backend(Decoder.turbo).decode("k.a", encoded, *full.shape[:2]), full)


@pytest.mark.parametrize("seed", range(3))
def test_turbos_pictures_are_near_pillows(seed: int) -> None:
    encoded = jpeg(scene(seed), quality=90)
    for limits, mean, most in ((LIMITS, 0.01, 2), (SMALL, 1.5, 12)):
        exact, ours = (load("k.a", encoded, limits, decoder) for decoder in (Decoder.pillow, Decoder.turbo))
        apart = difference(exact, ours)
        assert apart.mean() < mean
        assert apart.max() <= most


def test_a_camera_is_resized_as_pillow_does() -> None:
    for pixels in (scene(0), picture(np.random.default_rng(0), 100, 37), np.zeros((480, 640, 3), np.uint8)):
        exact, ours = (fit("front", pixels, LIMITS, decoder) for decoder in (Decoder.pillow, Decoder.turbo))
        apart = difference(exact, ours)
        assert apart.max() <= 2
        assert apart.mean() < 0.01


def test_the_scale_leaves_two_pixels_for_each() -> None:
    assert scaled_sides(480, 640, 224, 224) == (480, 640)
    assert scaled_sides(480, 640, 112, 140) == (240, 320)
    assert scaled_sides(480, 640, 120, 160) == (240, 320)
    assert scaled_sides(480, 640, 121, 160) == (480, 640)
    assert scaled_sides(480, 640, 56, 80) == (120, 160)
    assert scaled_sides(481, 643, 28, 28) == (61, 81)
    assert scaled_sides(100, 100, 224, 224) == (100, 100)
    assert scaled_sides(1080, 1920, 252, 420) == (540, 960)
    decoded = open_backend(Decoder.turbo).decode("k.a", jpeg(scene(0, 481, 643)), 241, 322)
    assert decoded.shape == (241, 322, 3)


@pytest.mark.parametrize("decoder", HERE)
def test_every_back_end_reads_png_grey_and_cmyk(decoder: Decoder) -> None:
    pixels = scene(3, 112, 140)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).convert("CMYK").save(buffer, "JPEG", quality=95)
    cases = (encode_picture(pixels, "PNG"), encode_picture(pixels[..., 0], "PNG"), jpeg(pixels), jpeg(pixels[..., 0]))
    for encoded in (*cases, buffer.getvalue()):
        exact = load("k.a", encoded, SMALL, Decoder.pillow)
        assert difference(load("k.a", encoded, SMALL, decoder), exact).max() <= 1


@pytest.mark.parametrize("decoder", HERE)
def test_every_back_end_refuses_the_same(decoder: Decoder) -> None:
    whole = jpeg(scene(0, 112, 112))
    for encoded in (whole[: len(whole) // 2], encode_picture(scene(0, 112, 112), "PNG")[:9000]):
        with pytest.raises(BadSampleError, match=r"^k\.front: cannot be decoded"):
            load("k.front", encoded, SMALL, decoder)
    for encoded in (b"", b"\xff\xd8\xff garbage", b"GIF89a"):
        with pytest.raises(BadSampleError, match=r"^k\.front: not a JPEG or PNG"):
            load("k.front", encoded, SMALL, decoder)


@pytest.mark.parametrize("decoder", [Decoder.pillow, Decoder.turbo, Decoder.dali, Decoder.dali_gpu])
def test_a_bomb_is_refused_before_anything_decodes_it(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "open_backend", lambda decoder: pytest.fail("it was given to a back end"))
    small = jpeg(scene(0, 16, 16))
    start = small.index(b"\xff\xc0") + 5
    claims = small[:start] + (60000).to_bytes(2, "big") * 2 + small[start + 4 :]
    with pytest.raises(BadSampleError, match=r"60000x60000 pixels; at most|exceeds limit"):
        load("k.front", claims, SMALL, decoder)
    with pytest.raises(BadSampleError, match="more than 200 times the other"):
        load("k.front", jpeg(np.zeros((3, 900, 3), np.uint8)), SMALL, decoder)


@NEEDS_DALI
def test_dali_is_near_pillow() -> None:
    encoded = jpeg(scene(0), quality=90)
    assert np.array_equal(open_backend(Decoder.dali).decode("k.a", encoded, 0, 0), images.decode("k.a", encoded))
    apart = difference(*(load("k.a", encoded, LIMITS, decoder) for decoder in (Decoder.pillow, Decoder.dali)))
    assert apart.mean() < 0.5
    assert apart.max() <= 16


@pytest.mark.skipif(HAS_DALI, reason="DALI is installed")
@pytest.mark.parametrize("decoder", [Decoder.dali, Decoder.dali_gpu])
def test_dali_that_is_not_installed_is_told_before_anything_is_read(decoder: Decoder) -> None:
    config = image_config()
    config.decoder = decoder
    with pytest.raises(ConfigError, match=rf"data\.image\.decoder={decoder.value}: needs NVIDIA DALI"):
        PictureReader(config)
