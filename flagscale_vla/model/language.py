"""Qwen2.5's decoder with multimodal rotary positions (Qwen2-VL report, section 2.1): one piece of a pipeline stage."""

from __future__ import annotations

import torch
from torch import Tensor

from flagscale_vla.config.model import LanguageConfig
from flagscale_vla.config.parallel import ParallelConfig
from flagscale_vla.mcore.megatron import (
    LanguageModule,
    gather_rows,
    output_linear,
    scatter_rows,
    token_losses,
    word_embedding,
)
from flagscale_vla.mcore.platform import Platform
from flagscale_vla.mcore.transformer import language_block, language_transformer, run_block


class LanguageModel(LanguageModule):
    """Embedding on the first piece, this piece's layers, output layer on the last; embeddings tied across stages."""

    def __init__(
        self,
        model: LanguageConfig,
        parallel: ParallelConfig,
        platform: Platform,
        *,
        first: bool,
        last: bool,
        chunk: int,
    ) -> None:
        super().__init__(config=language_transformer(model, parallel, platform))
        self.model = model
        self.vp_stage = chunk if parallel.virtual > 1 else None
        self.pre_process, self.post_process = first, last
        self.share_embeddings_and_output_weights = model.tied
        if first:
            self.embedding = word_embedding(self.config, model.vocab)
        self.decoder = language_block(self.config, platform.layers, first, last, self.vp_stage)
        if last:
            self.output_layer = output_linear(self.config, model.vocab, tied_inside=first and model.tied)
        if first or last:
            self.setup_embeddings_and_output_layer()

    def embed(self, tokens: Tensor) -> Tensor:
        """Word embeddings [S, H] of tokens i64[S], whole on every tensor rank."""
        return self.embedding(input_ids=tokens.unsqueeze(0), position_ids=None).squeeze(1)

    def transform(self, hidden: Tensor, bounds: Tensor, positions: Tensor) -> Tensor:
        """Run this piece's layers.

        Args:
            hidden: [S, H] on the first piece; later ones take what the schedule handed to the decoder.
            bounds: i32[N+1] borders of the whole row's documents, on the CPU.
            positions: i64[3, S] rotary positions of these rows.
        """
        return run_block(self.decoder, hidden.unsqueeze(1), bounds.unsqueeze(0), self.angles(positions))

    def scatter(self, hidden: Tensor) -> Tensor:
        """The rows that this tensor rank keeps between layers."""
        return scatter_rows(hidden, self.config)

    def gather(self, hidden: Tensor) -> Tensor:
        """Every tensor rank's rows."""
        return gather_rows(hidden, self.config)

    def angles(self, positions: Tensor) -> Tensor:
        """Rotary angles f32[S, head_dim / 2] of positions i64[3, S]: a frequency turns with one axis."""
        half = self.model.head_dim // 2
        exponent = torch.arange(half, dtype=torch.float32, device=positions.device) / half
        frequencies = 1.0 / self.model.rope_theta**exponent
        axes = torch.repeat_interleave(
            torch.arange(3, device=positions.device),
            torch.tensor(self.model.mrope_sections, device=positions.device),
            output_size=half,
        )
        return positions.float()[axes].T * frequencies

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy f32[L] of labels i64[L] at hidden states [L, H]."""
        return token_losses(self.logits(hidden), labels)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [L, vocab / tensor ranks] of hidden states [L, H]."""
        tied_inside = self.share_embeddings_and_output_weights and self.pre_process
        weight = self.shared_embedding_or_output_weight() if tied_inside else None
        logits, _ = self.output_layer(hidden.unsqueeze(1), weight=weight)
        return logits.squeeze(1)
