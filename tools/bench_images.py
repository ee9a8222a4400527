"""Pictures per second of every back end that decodes them, beside Pillow, and how far their pixels are from Pillow's.

    python tools/bench_images.py [--pictures 24] [--rounds 9]

JPEGs of 640 x 480, quality 90, with the spectrum of photographs, from bytes in memory to u8 pixels on their grid of
patches: for areas of 224 x 224 and of 128 x 128 pixels, which Qwen's smart resize makes 252 x 168 and 140 x 84. One
thread. A round gives every back end the same pictures, in turns forwards and backwards; times are the process's own CPU
time, and a ratio is taken within its round. DALI is measured where it is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from importlib.util import find_spec

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from flagscale_vla.config.image import Decoder, PixelLimits
from flagscale_vla.data.decoders import load

SIDES = (480, 640)
AREAS = (224, 128)
LEAST_PIXELS = 28 * 28
QUALITY = 90
OBJECTS = 8
CHROMA = 0.15
"""How much more than its brightness the colours of a picture vary."""


def photograph(seed: int) -> bytes:
    """A JPEG whose amplitudes fall as those of photographs do, about as 1/frequency (Field 1987), with even objects."""
    generator = np.random.default_rng(seed)
    light, colour = waves(generator, 1.2), [waves(generator, 1.6) for _ in range(3)]
    pixels = 120 + 45 * np.stack([light + CHROMA * part for part in colour], axis=-1)
    for _ in range(OBJECTS):
        top, left = generator.integers(0, SIDES)
        height, width = generator.integers(30, 160, 2)
        pixels[top : top + height, left : left + width] = generator.integers(0, 256, 3)
    picture = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def waves(generator: np.random.Generator, power: float) -> NDArray[np.float64]:
    """f64[480, 640] of unit deviation, amplitudes falling as 1/frequency^power."""
    down, right = np.fft.fftfreq(SIDES[0])[:, None], np.fft.rfftfreq(SIDES[1])[None]
    amplitude = np.maximum(np.hypot(down, right), 1 / SIDES[1]) ** -power
    values = np.fft.irfft2(amplitude * np.exp(2j * np.pi * generator.random(amplitude.shape)), SIDES)
    found: NDArray[np.float64] = (values - values.mean()) / values.std()
    return found


def backends() -> list[Decoder]:
    """Those that run here, on a CPU."""
    has_dali = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    return [Decoder.pillow, Decoder.turbo, *([Decoder.dali] if has_dali else [])]


def seconds(encoded: list[bytes], limits: PixelLimits, decoder: Decoder) -> float:
    """CPU time of all pictures."""
    start = time.process_time()
    for picture in encoded:
        load("picture", picture, limits, decoder)
    return time.process_time() - start


def measure(encoded: list[bytes], limits: PixelLimits, rounds: int) -> dict[Decoder, list[float]]:
    """Seconds of every round."""
    found: dict[Decoder, list[float]] = {decoder: [] for decoder in backends()}
    for decoder in found:
        seconds(encoded, limits, decoder)
    for number in range(rounds):
        order = list(found) if number % 2 else list(found)[::-1]
        for decoder in order:
            found[decoder].append(seconds(encoded, limits, decoder))
    return found


def differences(encoded: list[bytes], limits: PixelLimits, decoder: Decoder) -> tuple[float, int]:
    """Mean and largest difference from Pillow's pixels."""
    apart = [
        np.abs(load("p", picture, limits, decoder).astype(int) - load("p", picture, limits, Decoder.pillow))
        for picture in encoded
    ]
    return float(np.mean([part.mean() for part in apart])), int(max(part.max() for part in apart))


def main() -> None:
    """Measure; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoded = [photograph(seed) for seed in range(options.pictures)]
    figures: dict[str, float] = {"jpeg_bytes": statistics.mean(map(len, encoded))}
    print(f"JPEGs of {figures['jpeg_bytes']:,.0f} bytes")
    print("| area | back end | pictures a CPU second | by Pillow's | quartiles | mean apart | most apart |")
    print("|---|---|---|---|---|---|---|")
    for side in AREAS:
        limits = PixelLimits(LEAST_PIXELS, side * side)
        found = measure(encoded, limits, options.rounds)
        for decoder, times in found.items():
            ratios = [pillow / own for pillow, own in zip(found[Decoder.pillow], times, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rate = len(encoded) / statistics.median(times)
            mean, most = differences(encoded, limits, decoder)
            name = f"{decoder.value}_{side}"
            figures |= {f"rate_{name}": rate, f"ratio_{name}": middle, f"low_{name}": low, f"mean_{name}": mean}
            print(
                f"| {side}² | {decoder.value} | {rate:,.0f} | {middle:.2f} | {low:.2f} to {high:.2f} "
                f"| {mean:.3f} | {most} |"
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
