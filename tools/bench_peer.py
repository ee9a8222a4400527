"""The other side of the comparison: Qwen2.5-VL from `transformers` with EO-1's head, trained on padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from flagscale_vla.action.vocabulary import Vocabulary
from flagscale_vla.config.model import ModelConfig, VisionKind
from flagscale_vla.config.optim import OptimConfig
from flagscale_vla.hf.table import to_theirs
from flagscale_vla.model.flow import FlowInput, FlowOutput, noised
from flagscale_vla.model.pixels import cut_patches, normalize
from flagscale_vla.records import Sample


def qwen_config(model: ModelConfig, vocabulary: Vocabulary) -> Qwen2_5_VLConfig:
    """transformers' settings of a model of these sizes."""
    vision, language = model.vision, model.language
    rope = {"rope_type": "default", "rope_theta": language.rope_theta, "mrope_section": language.mrope_sections}
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": language.hidden,
            "intermediate_size": language.intermediate,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "vocab_size": language.vocab,
            "rms_norm_eps": language.norm_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": language.tied,
            "bos_token_id": None,
            "eos_token_id": vocabulary.turn_end,
        },
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.intermediate,
            "num_heads": vision.heads,
            "out_hidden_size": language.hidden,
            "fullatt_block_indexes": vision.full_attention_layers,
            "window_size": vision.window_pixels,
        },
        image_token_id=vocabulary.image_pad,
        vision_start_token_id=vocabulary.vision_start,
        tie_word_embeddings=language.tied,
        attn_implementation="sdpa",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """B samples as a collate function pads them, to the longest, T; the rest as in `Sample`, concatenated."""

    tokens: Tensor
    """i64[B, T]"""
    mask: Tensor
    """i64[B, T]; 0 at padding"""
    labels: Tensor
    """i64[B, T], shifted; -100 where nothing is supervised"""
    positions: Tensor
    """i64[3, B, T]"""
    pixels: Tensor
    grid: Tensor
    actions: Tensor
    action_valid: Tensor
    noise: Tensor
    time: Tensor
    states: Tensor
    image_places: Tensor
    """bool[B, T]"""
    state_places: Tensor
    action_places: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.mask.sum())


def pad(samples: Sequence[Sample], vocabulary: Vocabulary) -> Padded:
    """Samples in one batch, padded on the right."""
    tokens = pad_sequence([s.tokens for s in samples], batch_first=True, padding_value=vocabulary.pad)
    mask = pad_sequence([torch.ones_like(s.tokens) for s in samples], batch_first=True)
    return Padded(
        tokens=tokens,
        mask=mask,
        labels=pad_sequence([s.labels for s in samples], batch_first=True, padding_value=-100),
        positions=pad_sequence([s.positions.T for s in samples], batch_first=True).permute(2, 0, 1),
        pixels=normalize(torch.cat([cut_patches(s.pixels, s.frames, s.grid) for s in samples]), VisionKind.qwen2_5_vl),
        grid=torch.cat([s.grid for s in samples]),
        actions=torch.cat([s.actions for s in samples]),
        action_valid=torch.cat([s.action_valid for s in samples]),
        noise=torch.cat([s.noise for s in samples]),
        time=torch.cat([s.time for s in samples]),
        states=torch.cat([s.states for s in samples]),
        image_places=tokens == vocabulary.image_pad,
        state_places=tokens == vocabulary.state_pad,
        action_places=tokens == vocabulary.action_pad,
    )


class PeerModel(nn.Module):
    """transformers' model with the head in plain torch, started from our weights."""

    def __init__(self, model: ModelConfig, vocabulary: Vocabulary, ours: dict[str, Tensor]) -> None:
        super().__init__()
        self.qwen = Qwen2_5_VLForConditionalGeneration(qwen_config(model, vocabulary))
        theirs = {name: tensor.clone() for name, tensor in to_theirs(model, ours).items()}
        missing = self.qwen.load_state_dict(theirs, strict=False)
        assert not missing.unexpected_keys
        assert set(missing.missing_keys) <= {"lm_head.weight"}
        self.flow_in = FlowInput(model.flow, model.language.hidden, nn.Linear)
        self.flow_out = FlowOutput(model.flow, model.language.hidden, nn.Linear)
        for name, part in (("flow_in.", self.flow_in), ("flow_out.", self.flow_out)):
            part.load_state_dict({k.removeprefix(name): v.clone() for k, v in ours.items() if k.startswith(name)})

    def forward(self, batch: Padded) -> tuple[Tensor, Tensor]:
        """Sums of both losses over the batch."""
        qwen = self.qwen.model
        inputs = qwen.get_input_embeddings()(batch.tokens)
        if len(batch.grid):
            images = qwen.get_image_features(batch.pixels, batch.grid).pooler_output
            inputs = inputs.masked_scatter(batch.image_places[..., None], torch.cat(images))
        if len(batch.states):
            inputs = inputs.masked_scatter(batch.state_places[..., None], self.flow_in.states(batch.states))
        if len(batch.actions):
            steps = self.flow_in.actions(noised(batch.actions, batch.noise, batch.time), batch.time)
            inputs = inputs.masked_scatter(batch.action_places[..., None], steps)
        hidden = qwen.language_model(
            inputs_embeds=inputs, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        logits = self.qwen.lm_head(hidden)
        text = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), reduction="sum")
        velocities = self.flow_out(hidden[batch.action_places]).view_as(batch.actions)
        squared = (velocities - (batch.noise - batch.actions)).square()
        return text, squared[batch.action_valid].sum()


class Peer:
    """A plain training loop around the model: AdamW, clipping."""

    def __init__(self, model: PeerModel, optim: OptimConfig) -> None:
        self.model, self.optim = model.train(), optim
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
            lr=optim.language.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )

    def train_step(self, batches: Sequence[Padded], lr_share: float) -> tuple[float, float, float]:
        """One optimizer step over all batches: text loss, flow loss (means), and the gradient's norm."""
        labels = max(1, sum(int((batch.labels >= 0).sum()) for batch in batches))
        values = max(1, sum(int(batch.action_valid.sum()) for batch in batches))
        text_loss, flow_loss = 0.0, 0.0
        self.optimizer.zero_grad()
        for batch in batches:
            text, flow = self.model(batch)
            (self.optim.loss.text * text / labels + self.optim.loss.flow * flow / values).backward()
            text_loss, flow_loss = text_loss + text.item() / labels, flow_loss + flow.item() / values
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optim.language.lr * lr_share
        self.optimizer.step()
        return text_loss, flow_loss, float(norm)
