"""Where everything of a sample stands: its tokens, and the slots of what the model computes from other things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flagscale_vla.data.conversation import Conversation, Layout, num_chunks
from flagscale_vla.data.pictures import Clip, merged_tokens
from flagscale_vla.data.positions import rotary_positions
from flagscale_vla.records import Segment, Text

Form: TypeAlias = tuple[tuple[Text | type[Segment], ...], tuple[Clip, ...], int | None]
"""All that `Places` depends on where there are no codes: texts, kinds of the other segments, clips, chosen chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The fields of `Sample` that are the same for all samples of the same form. Shared by them: never write to one."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    frames: Tensor
    grid: Tensor
    image_slots: Tensor
    action_slots: Tensor
    state_slots: Tensor


class Placer:
    """Lays samples out. Keeps what it laid out last for robots' samples: those of one instruction have one form.

    Args:
        conversation: how samples are laid out.
    """

    KEPT_TOKENS = 1 << 18
    """40 bytes each"""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self._kept: dict[Form, Places] = {}
        self._tokens = 0

    def __reduce__(self) -> tuple[type[Placer], tuple[Conversation]]:
        return Placer, (self.conversation,)

    def place(
        self,
        segments: Sequence[Segment],
        clips: Sequence[Clip],
        chosen: int | None,
        codes: Sequence[Sequence[int]] | None,
    ) -> Places:
        """The sample's places; arguments as of `Conversation.lay_out`, with a clip for each picture or film."""
        form = form_of(segments, clips, chosen) if codes is None else None
        places = self._kept.get(form) if form else None
        if places is None:
            counts = [merged_tokens(clip.grid) for clip in clips]
            layout = self.conversation.lay_out(segments, counts, chosen, codes)
            places = put(layout, clips, self.conversation.horizon)
            self._keep(form, places)
        return places

    def _keep(self, form: Form | None, places: Places) -> None:
        if form is None:
            return
        self._tokens += places.tokens.numel()
        if self._tokens > self.KEPT_TOKENS:
            self._kept.clear()
            self._tokens = places.tokens.numel()
        self._kept[form] = places


def form_of(segments: Sequence[Segment], clips: Sequence[Clip], chosen: int | None) -> Form | None:
    """The form of a robot's sample; None for others, which seldom come again."""
    if num_chunks(segments) == 0:
        return None
    texts = tuple(segment if isinstance(segment, Text) else type(segment) for segment in segments)
    return texts, tuple(clips), chosen


def put(layout: Layout, clips: Sequence[Clip], horizon: int) -> Places:
    """Everything in its place."""
    grids, strides = [clip.grid for clip in clips], [clip.stride for clip in clips]
    positions = rotary_positions(len(layout.tokens), layout.image_starts, grids, strides)
    return Places(
        tokens=torch.from_numpy(layout.tokens),
        labels=torch.from_numpy(layout.labels),
        positions=torch.from_numpy(positions),
        frames=torch.tensor([clip.frames for clip in clips], dtype=torch.int64),
        grid=torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
        image_slots=torch.from_numpy(image_slots(layout)),
        action_slots=torch.from_numpy(action_slots(layout, horizon)),
        state_slots=torch.tensor(layout.state_starts, dtype=torch.int64),
    )


def image_slots(layout: Layout) -> NDArray[np.int64]:
    """i64[P/4], the placeholders of all images in order."""
    spans = zip(layout.image_starts, layout.image_lengths, strict=True)
    return np.concatenate([np.empty(0, np.int64), *(np.arange(start, start + count) for start, count in spans)])


def action_slots(layout: Layout, horizon: int) -> NDArray[np.int64]:
    """i64[C, H], the placeholders of all chunks."""
    return np.asarray(layout.action_starts, np.int64)[:, None] + np.arange(horizon)
