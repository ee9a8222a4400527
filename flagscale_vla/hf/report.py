"""The page of an import or export: what went where, and how large its values are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from flagscale_vla.hf.forms import Row
from flagscale_vla.reports.pages import figure_uri, write_report

PARTS = ("language", "vision", "flow")
"""How our names begin, by part of the model."""
PIECE = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A tensor that went through."""

    row: Row
    dtype: torch.dtype
    num_bytes: int
    rms: float
    """root of the mean square of its values"""

    @classmethod
    def of(cls, row: Row, tensor: Tensor) -> Moved:
        """Describe a tensor of ours.

        Raises:
            ValueError: it holds a value that is not finite.
        """
        rms = root_mean_square(tensor)
        if not math.isfinite(rms):
            raise ValueError(f"{row.ours} ({', '.join(row.theirs)}) holds values that are not finite")
        return cls(row=row, dtype=tensor.dtype, num_bytes=tensor.nbytes, rms=rms)

    @property
    def part(self) -> str:
        """The part of the model it belongs to."""
        return next(part for part in PARTS if self.row.ours.startswith(part))

    @property
    def num_parameters(self) -> int:
        """How many values it holds."""
        return torch.Size(self.row.shape).numel()


def root_mean_square(tensor: Tensor) -> float:
    """Of all values, in float64; piece by piece, for an embedding has gigabytes."""
    squares = sum(piece.double().square().sum().item() for piece in tensor.flatten().split(PIECE))
    return math.sqrt(squares / tensor.numel())


def write_page(folder: Path, title: str, figures: Mapping[str, object], moved: Sequence[Moved], config: str) -> None:
    """Write `report.html`."""
    present = [part for part in PARTS if any(tensor.part == part for tensor in moved)]
    fields = {
        "title": title,
        "figures": figures,
        "parts": [part_row(part, [tensor for tensor in moved if tensor.part == part]) for part in present],
        "sizes": figure_uri(draw_sizes(moved, present)),
        "tensors": [tensor_row(tensor) for tensor in moved],
        "config": config,
    }
    write_report(folder, "exchange.html.j2", fields)


def part_row(part: str, moved: Sequence[Moved]) -> dict[str, object]:
    """What the page says of one part."""
    return {
        "part": part,
        "tensors": len(moved),
        "parameters": sum(tensor.num_parameters for tensor in moved),
        "mib": sum(tensor.num_bytes for tensor in moved) / 2**20,
        "dtypes": ", ".join(sorted({short(tensor.dtype) for tensor in moved})),
    }


def tensor_row(tensor: Moved) -> dict[str, object]:
    """What the page says of one tensor."""
    row = tensor.row
    shape = " × ".join(map(str, row.shape))
    return {
        "ours": row.ours,
        "theirs": row.theirs,
        "shape": shape,
        "dtype": short(tensor.dtype),
        "rms": f"{tensor.rms:.4g}",
    }


def draw_sizes(moved: Sequence[Moved], parts: Sequence[str]) -> Figure:
    """The root mean square of each tensor, in the order of the model: a layer that is off stands out."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for part in parts:
        places = [place for place, tensor in enumerate(moved) if tensor.part == part]
        axes.plot(places, [moved[place].rms for place in places], ".", markersize=4, label=part)
    # Biases that were never trained are zero.
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set_xlabel("tensor, in the model's order", fontsize=9)
    axes.set_ylabel("root mean square", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def short(dtype: torch.dtype) -> str:
    """A dtype's name without its module's."""
    return str(dtype).removeprefix("torch.")
