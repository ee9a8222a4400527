"""A vision-language-action model: a Qwen-VL or InternVL with EO-1's flow head, as one piece of a pipeline stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagscale_vla.config.model import ModelConfig
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.mcore.documents import zigzag_rows
from flagscale_vla.mcore.megatron import MegatronModule, ModelType
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.topology import Topology
from flagscale_vla.model.flow import FlowInput, FlowOutput, noised
from flagscale_vla.model.language import LanguageModel
from flagscale_vla.model.pixels import cut_patches
from flagscale_vla.model.shares import run_shared
from flagscale_vla.model.towers import build_vision
from flagscale_vla.records import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What the last piece answers for its context rank's rows."""

    token_losses: Tensor
    """f32[L] cross entropy at supervised tokens"""
    velocities: Tensor
    """f32[C, H, A]"""
    velocity_weight: Tensor
    """f32[C, H, A]; 1 where the flow loss is taken on this context rank, else 0"""


class VisionLanguageAction(MegatronModule):
    """One piece of the pipeline: vision, embedding and flow input on the first, both output layers on the last.

    A stage has `parallel.virtual` pieces, numbered by `chunk`. Without pipeline parallelism the one piece is all.
    """

    def __init__(
        self, model: ModelConfig, parallel: ParallelConfig, platform: Platform, topology: Topology, chunk: int = 0
    ) -> None:
        first = topology.is_first_stage and chunk == 0
        last = topology.is_last_stage and chunk == parallel.virtual - 1
        language = LanguageModel(model.language, parallel, platform, first=first, last=last, chunk=chunk)
        super().__init__(config=language.config)
        self.model_type = ModelType.encoder_or_decoder
        self.cp_size, self.cp_rank = topology.cp_size, topology.cp_rank
        self.pre_process, self.post_process = first, last
        self.share_embeddings_and_output_weights = model.language.tied
        if first:
            self.vision, self.patch_frames = build_vision(model, parallel, platform), model.vision.patch_frames
            self.flow_in = FlowInput(model.flow, model.language.hidden, platform.layers.head_linear)
        self.language = language
        if last:
            self.flow_out = FlowOutput(model.flow, model.language.hidden, platform.layers.head_linear)

    def shared_embedding_or_output_weight(self) -> Tensor | None:
        """The tied embedding, whose gradients Megatron-core sums over first and last stage."""
        return self.language.shared_embedding_or_output_weight()

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None]) -> None:
        """Take the previous piece's output from Megatron-core's schedule."""
        hidden = input_tensor[0] if isinstance(input_tensor, list) else input_tensor
        self.language.decoder.set_input_tensor(hidden)

    def forward(self, batch: PackedBatch) -> Tensor | Predictions:
        """Hidden states [S', 1, H] for the next piece, or, on the last one, predictions."""
        rows = torch.from_numpy(zigzag_rows(len(batch.tokens), self.cp_size, self.cp_rank)).to(batch.tokens.device)
        if self.pre_process:
            hidden = self.language.scatter(self.embed(batch)[rows])
        else:
            hidden = batch.tokens.new_empty(0, dtype=self.config.params_dtype)
        hidden = self.language.transform(hidden, batch.cu_seqlens, batch.positions[:, rows])
        return self.predict(self.language.gather(hidden).squeeze(1), batch, rows) if self.post_process else hidden

    def embed(self, batch: PackedBatch) -> Tensor:
        """Inputs [S, H] of the whole row: words, and in their slots images, states and noised actions."""
        patches = cut_patches(batch.pixels, batch.frames, batch.grid, self.patch_frames)
        steps = noised(batch.actions, batch.noise, batch.time)
        parts = [
            run_shared(self.vision, patches, batch.grid, self.cp_size, self.cp_rank),
            self.flow_in.states(batch.states),
            self.flow_in.actions(steps, batch.time).flatten(0, 1),
        ]
        slots = torch.cat([batch.image_slots, batch.state_slots, batch.action_slots.flatten()])
        words = self.language.embed(batch.tokens)
        rows = torch.cat([part.to(words.dtype) for part in parts])
        return place_rows(words, rows, slots)

    def predict(self, hidden: Tensor, batch: PackedBatch, rows: Tensor) -> Predictions:
        """Losses and velocities at hidden states [S', H] of the given `rows` of the whole row."""
        labels = batch.labels[rows]
        supervised = torch.nonzero(labels >= 0).squeeze(1)
        # One more row of weight zero: the output layer is touched, and never by an empty product.
        chosen = torch.cat([supervised, supervised.new_zeros(1)])
        losses = self.language.token_losses(hidden[chosen], labels[chosen].clamp(min=0))
        place = self._local_rows(rows, len(batch.tokens))[batch.action_slots]
        return Predictions(
            token_losses=torch.cat([losses[:-1], losses[-1:] * 0.0]),
            velocities=self.flow_out(hidden[place.clamp(min=0)]),
            velocity_weight=(batch.action_valid & (place >= 0)[..., None]).float(),
        )

    @staticmethod
    def _local_rows(rows: Tensor, length: int) -> Tensor:
        """Where each row of the whole row is among these `rows`, i64[length]; -1 where it is elsewhere."""
        place = rows.new_full((length,), -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        return place


def place_rows(base: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """`base` [S, H] with `rows` [R, H] at `slots` i64[R]; a row at -1 is placed nowhere but keeps a zero gradient."""
    length = len(base)
    spare = torch.cat([base, base.new_zeros(1, base.shape[1])])
    placed = spare.index_copy(0, torch.where(slots < 0, length, slots), rows)
    return placed[:length] + 0.0 * placed[length:].sum(0)
