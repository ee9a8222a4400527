"""What a stored tensor is cut into.

Rectangles, as tensor ranks hold them, and runs of a rectangle's values, as data-parallel ranks hold optimizer state.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """A block of a whole tensor: from `offset`, of `shape`."""

    offset: Shape
    shape: Shape

    @property
    def numel(self) -> int:
        """Values in it."""
        return prod(self.shape)

    def overlap(self, other: Rectangle) -> Rectangle | None:
        """The block that both share, or None."""
        low = tuple(map(max, self.offset, other.offset))
        ends = zip(self._ends, other._ends, strict=True)
        shape = tuple(min(end) - start for end, start in zip(ends, low, strict=True))
        return Rectangle(offset=low, shape=shape) if all(size > 0 for size in shape) else None

    def within(self, outer: Rectangle) -> tuple[slice, ...]:
        """Where this block is in an array of `outer`."""
        starts = [mine - theirs for mine, theirs in zip(self.offset, outer.offset, strict=True)]
        return tuple(slice(start, start + size) for start, size in zip(starts, self.shape, strict=True))

    @property
    def _ends(self) -> Shape:
        return tuple(start + size for start, size in zip(self.offset, self.shape, strict=True))

    @staticmethod
    def whole(shape: Shape) -> Rectangle:
        """All of a tensor."""
        return Rectangle(offset=(0,) * len(shape), shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Values [start, stop) of a rectangle of a named tensor, in row-major order."""

    name: str
    whole: Shape
    """shape of the whole tensor"""
    rectangle: Rectangle
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Values in it."""
        return self.stop - self.start

    @property
    def is_whole_rectangle(self) -> bool:
        """Whether nothing of the rectangle is left out."""
        return self.numel == self.rectangle.numel

    @property
    def label(self) -> str:
        """A name of its own: the tensor's, and, unless it is all of it, where the piece lies in it."""
        if self.rectangle == Rectangle.whole(self.whole) and self.is_whole_rectangle:
            return self.name
        corner = ",".join(map(str, self.rectangle.offset))
        return f"{self.name}[{corner}:{self.start}-{self.stop}]"
