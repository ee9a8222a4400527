"""Samples laid end to end and padded: one row of one data-parallel rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from flagscale_vla.config.model import PATCH_MERGE, PATCH_PIXELS
from flagscale_vla.data.conversation import UNSUPERVISED
from flagscale_vla.records import PackedBatch, Sample

NOWHERE = -1
"""Slot of a dummy: what stands there is placed nowhere."""


def pack(samples: Sequence[Sample], length: int, *, pad: int, horizon: int, width: int) -> PackedBatch:
    """One row of `length` tokens.

    The padding is a last document of `pad` tokens. A row without images, states or chunks gets one zero dummy of each
    kind it lacks, so that every row touches every trainable part.

    Args:
        samples: whole samples, in order; may be empty.
        length: S.
        pad: id of the padding token.
        horizon: H of a dummy chunk.
        width: A of a dummy chunk and state.

    Raises:
        ValueError: the samples have more than `length` tokens.
    """
    ends = list(accumulate((sample.tokens.numel() for sample in samples), initial=0))
    used = ends[-1]
    if used > length:
        raise ValueError(f"{[sample.key for sample in samples]}: {used} tokens do not fit into a row of {length}")
    parts = [_shifted(sample, start) for sample, start in zip(samples, ends, strict=False)]
    parts += [_dummies(samples, horizon, width), _padding(length - used, pad)]

    def join(name: str, dim: int = 0) -> Tensor:
        return torch.cat([part[name] for part in parts if name in part], dim=dim)

    labels, action_valid = join("labels"), join("action_valid")
    return PackedBatch(
        tokens=join("tokens"),
        labels=labels,
        positions=join("positions", dim=1),
        cu_seqlens=torch.tensor(ends if used == length else [*ends, length], dtype=torch.int32),
        pixels=_join_pixels([part["pixels"] for part in parts if "pixels" in part]),
        frames=join("frames"),
        grid=join("grid"),
        image_slots=join("image_slots"),
        actions=join("actions"),
        action_valid=action_valid,
        noise=join("noise"),
        time=join("time"),
        action_slots=join("action_slots"),
        states=join("states"),
        state_slots=join("state_slots"),
        keys=tuple(sample.key for sample in samples),
        num_labels=int((labels != UNSUPERVISED).sum()),
        num_action_values=int(action_valid.sum()),
        num_tokens=used,
    )


def _join_pixels(parts: Sequence[Tensor]) -> Tensor:
    """u8[B] of all parts. Where they lie end to end in one storage, nothing is copied."""
    parts = [part for part in parts if part.numel()]
    sizes = [part.numel() for part in parts]
    starts = accumulate(sizes[:-1], initial=parts[0].data_ptr())
    inside = parts[0].storage_offset() + sum(sizes) <= parts[0].untyped_storage().nbytes()
    if inside and [part.data_ptr() for part in parts] == list(starts):
        return parts[0].as_strided((sum(sizes),), (1,))
    return torch.cat(parts)


def _shifted(sample: Sample, start: int) -> dict[str, Tensor]:
    """A sample's tensors, its slots counted from the row's beginning."""
    return {
        "tokens": sample.tokens,
        "labels": sample.labels,
        "positions": sample.positions,
        "pixels": sample.pixels,
        "frames": sample.frames,
        "grid": sample.grid,
        "image_slots": sample.image_slots + start,
        "actions": sample.actions,
        "action_valid": sample.action_valid,
        "noise": sample.noise,
        "time": sample.time,
        "action_slots": sample.action_slots + start,
        "states": sample.states,
        "state_slots": sample.state_slots + start,
    }


def _dummies(samples: Iterable[Sample], horizon: int, width: int) -> dict[str, Tensor]:
    """Zeros for each kind of input that no sample brings, in no slot and without a loss."""
    samples = list(samples)
    dummies: dict[str, Tensor] = {}
    if not any(sample.grid.numel() for sample in samples):
        dummies["pixels"] = torch.zeros(3 * (PATCH_MERGE * PATCH_PIXELS) ** 2, dtype=torch.uint8)
        dummies["frames"] = torch.tensor([1])
        dummies["grid"] = torch.tensor([[1, PATCH_MERGE, PATCH_MERGE]])
        dummies["image_slots"] = torch.tensor([NOWHERE])
    if not any(sample.states.numel() for sample in samples):
        dummies["states"] = torch.zeros(1, width)
        dummies["state_slots"] = torch.tensor([NOWHERE])
    if not any(sample.actions.numel() for sample in samples):
        dummies["actions"] = torch.zeros(1, horizon, width)
        dummies["noise"] = torch.zeros(1, horizon, width)
        dummies["time"] = torch.zeros(1)
        dummies["action_valid"] = torch.zeros(1, horizon, width, dtype=torch.bool)
        dummies["action_slots"] = torch.full((1, horizon), NOWHERE)
    return dummies


def _padding(length: int, pad: int) -> dict[str, Tensor]:
    """The document that fills the rest of a row."""
    return {
        "tokens": torch.full((length,), pad),
        "labels": torch.full((length,), UNSUPERVISED),
        "positions": torch.arange(length).expand(3, length),
    }
