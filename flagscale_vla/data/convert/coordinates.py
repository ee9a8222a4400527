"""Boxes and points that are written in a text: told in one way, told in another.

JSON as Qwen2.5-VL writes it: `"bbox_2d": [x1, y1, x2, y2]` and `"point_2d": [x, y]`, also lists of them; and points in
XML: `<point x="1" y="2" ...>` and `<points x1="1" y1="2" x2="3" y2="4" ...>`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from flagscale_vla.config.convert_conversations import Coordinates
from flagscale_vla.data.convert.turns import RowError

NUMBER = r"-?\d+(?:\.\d+)?"
FLAT = rf"\[\s*{NUMBER}(?:\s*,\s*{NUMBER})*\s*\]"
JSON_FORM = re.compile(rf'(["\'](bbox|point)_2d["\']\s*:\s*)({FLAT}|\[\s*{FLAT}(?:\s*,\s*{FLAT})*\s*\])')
XML_TAG = re.compile(r"<points?\s[^<>]*>")
XML_PAIR = re.compile(rf'\bx(\d*)\s*=\s*"({NUMBER})"\s+y(\d*)\s*=\s*"({NUMBER})"')
ANY_FORM = re.compile(r'["\'](?:bbox|point)_2d["\']|<points?\s')
FULL = {Coordinates.relative_1: 1.0, Coordinates.relative_100: 100.0, Coordinates.relative_1000: 1000.0}
"""What the whole width or height is; that of absolute coordinates is the picture's own."""
DIGITS = {
    Coordinates.absolute: 0,
    Coordinates.relative_1: 4,
    Coordinates.relative_100: 1,
    Coordinates.relative_1000: 0,
}
"""Behind the point, of what is written."""
NUMBERS = {"bbox": 4, "point": 2}

Size = tuple[int, int]
"""Width and height of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaling:
    """From what a source means by its coordinates to what is to be written.

    Args of its methods: `given` is the size of the picture that the source speaks of, `stored` of the one in the shard.
    """

    source: Coordinates
    target: Coordinates

    @property
    def needs_size(self) -> bool:
        """Whether a text cannot be rewritten or checked without the picture's size."""
        return Coordinates.absolute in (self.source, self.target)

    def rewrite(self, text: str, given: Size, stored: Size) -> str:
        """The text with every box and point in the target's coordinates.

        Raises:
            RowError: a box or point lies outside the picture, has a wrong count of numbers, or its corners are swapped.
        """
        text = JSON_FORM.sub(partial(self._rewrite_json, given, stored), text)
        return XML_TAG.sub(partial(self._rewrite_tag, given, stored), text)

    def _rewrite_json(self, given: Size, stored: Size, found: re.Match[str]) -> str:
        head, kind, numbers = found.groups()
        return head + json.dumps(self._scale_list(kind, json.loads(numbers), given, stored))

    def _scale_list(self, kind: str, values: list[Any], given: Size, stored: Size) -> list[Any]:
        if values and isinstance(values[0], list):
            return [self._scale_list(kind, part, given, stored) for part in values]
        if len(values) != NUMBERS[kind]:
            raise RowError(f"bad {kind}: {values} must hold {NUMBERS[kind]} numbers")
        if kind == "bbox" and (values[0] > values[2] or values[1] > values[3]):
            raise RowError(f"bad bbox: {values} must be left, top, right, bottom")
        return [self._scale(value, number % 2, given, stored) for number, value in enumerate(values)]

    def _rewrite_tag(self, given: Size, stored: Size, found: re.Match[str]) -> str:
        return XML_PAIR.sub(partial(self._rewrite_pair, given, stored), found.group())

    def _rewrite_pair(self, given: Size, stored: Size, found: re.Match[str]) -> str:
        across, x, down, y = found.groups()
        scaled = [self._scale(float(value), axis, given, stored) for axis, value in enumerate((x, y))]
        return f'x{across}="{scaled[0]}" y{down}="{scaled[1]}"'

    def _scale(self, value: float, axis: int, given: Size, stored: Size) -> float | int:
        full = FULL.get(self.source, float(given[axis]))
        if not 0 <= value <= full:
            raise RowError(f"coordinate outside the picture: {value} does not lie in [0, {full:g}]")
        digits = DIGITS[self.target]
        scaled = round(value / full * FULL.get(self.target, float(stored[axis])), digits)
        return scaled if digits else int(scaled)


def has_coordinates(text: str) -> bool:
    """Whether a text holds a box or a point."""
    return ANY_FORM.search(text) is not None
