"""How one tensor of ours holds one, two or three of Hugging Face's: whole tensors, each form exact both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Form(Protocol):
    """How one tensor of ours holds some of theirs."""

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""


@dataclass(frozen=True, slots=True)
class Same:
    """The same tensor under another name."""

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        return theirs[0]

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        return [ours]


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The same values in the same order in another shape, as a convolution whose stride is its kernel is linear."""

    inner: tuple[int, ...]
    """our shape"""
    outer: tuple[int, ...]
    """their shape"""

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        return theirs[0].reshape(self.inner)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        return [ours.reshape(self.outer)]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Theirs one below the other: gate and up projection."""

    count: int

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        return torch.cat(theirs)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        return list(ours.chunk(self.count))


@dataclass(frozen=True, slots=True)
class Grouped:
    """Query, key and value, one group of heads after the other, as Megatron-core splits them over tensor ranks.

    With `fused` their side is one tensor too: all queries, then all keys, then all values.
    """

    heads: int
    groups: int
    head_dim: int
    fused: bool

    def ours(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, of theirs."""
        parts = self._split(theirs[0]) if self.fused else theirs
        grouped = [part.reshape(self.groups, -1, *part.shape[1:]) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    def theirs(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, of ours."""
        grouped = ours.reshape(self.groups, -1, *ours.shape[1:])
        sizes = [self.heads // self.groups * self.head_dim, self.head_dim, self.head_dim]
        parts = [part.flatten(0, 1) for part in grouped.split(sizes, dim=1)]
        return [torch.cat(parts)] if self.fused else parts

    @property
    def rows(self) -> int:
        """Rows of our tensor."""
        return (self.heads + 2 * self.groups) * self.head_dim

    def _split(self, fused: Tensor) -> list[Tensor]:
        keys = self.groups * self.head_dim
        return list(fused.split([self.heads * self.head_dim, keys, keys]))


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of ours, and theirs that it holds."""

    ours: str
    theirs: tuple[str, ...]
    form: Form
    shape: tuple[int, ...]
    """of our tensor, whole"""

    @property
    def their_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of theirs."""
        return [tuple(part.shape) for part in self.form.theirs(torch.empty(self.shape, device="meta"))]


def norm(ours: str, theirs: str, width: int, *, bias: bool) -> list[Row]:
    """A norm's weight, and its bias where it has one."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return [Row(f"{ours}.{kind}", (f"{theirs}.{kind}",), Same(), (width,)) for kind in kinds]


def linear(ours: str, theirs: tuple[str, ...], form: Form, shape: tuple[int, int], *, bias: bool) -> list[Row]:
    """A linear layer's weight of this shape, and its bias where it has one."""
    rows = [Row(f"{ours}.weight", tuple(f"{name}.weight" for name in theirs), form, shape)]
    if bias:
        rows.append(Row(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs), form, shape[:1]))
    return rows
