"""Codes under their grammar: a token at a time for all observations together, behind the keys and values of before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flagscale_vla.action.tokenizer import Grammar
from flagscale_vla.action.vocabulary import ActionIds
from flagscale_vla.mcore.attention import PrefixCache, use_prefix_cache
from flagscale_vla.model.sampling import integrate, run_prefix, run_rows
from flagscale_vla.model.vla import VisionLanguageAction
from flagscale_vla.records import PackedBatch

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """How a model writes codes.

    A code that the grammar refuses is never written, whatever the model thinks of it.
    """

    ids: ActionIds
    temperature: float
    """0 takes the likeliest code; else codes are drawn from the softmax of the logits over it"""

    def choose(self, logits: Tensor, legal: Sequence[Codes], generators: Sequence[np.random.Generator]) -> list[int]:
        """One legal code for each row of logits f32[n, num_codes]."""
        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        for row, codes in zip(allowed, legal, strict=True):
            row[torch.from_numpy(codes)] = True
        if self.temperature > 0:
            # The largest of logits with Gumbel noise is a draw from their softmax.
            noise = np.stack([generator.gumbel(size=logits.shape[1]) for generator in generators])
            logits = logits / self.temperature + torch.from_numpy(noise).to(logits)
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf).argmax(dim=1).tolist()


@dataclass(slots=True, kw_only=True)
class _Pen:
    """One observation's string of codes as it is written."""

    grammar: Grammar
    generator: np.random.Generator
    codes: list[int]
    legal: Codes

    def write(self, code: int) -> None:
        self.codes.append(code)
        self.legal = self.grammar.legal(self.codes)


@torch.no_grad()
def write_codes(
    model: VisionLanguageAction, batch: PackedBatch, writer: Writer, grammars: Sequence[Grammar], seed: int
) -> list[Codes]:
    """Codes i64[K] for each document of the row, a prompt each, its chunk's placeholders where the codes begin.

    Args:
        model: a whole model: one stage, one rank.
        batch: a row of prompts without padding, on the model's device.
        writer: how codes are chosen.
        grammars: of each document.
        seed: of draws; document n's are a function of `seed` + n.
    """
    cache = PrefixCache()
    with use_prefix_cache(model, cache):
        return _write(model, batch, writer, grammars, seed, cache, keep_last=False)


@torch.no_grad()
def write_codes_and_denoise(
    model: VisionLanguageAction, batch: PackedBatch, writer: Writer, grammars: Sequence[Grammar], seed: int, steps: int
) -> tuple[list[Codes], Tensor]:
    """As `write_codes`, and behind each document's codes the chunk f32[C, H, A] of `model.sampling.denoise`."""
    cache = PrefixCache()
    with use_prefix_cache(model, cache):
        codes = _write(model, batch, writer, grammars, seed, cache, keep_last=True)
        moved = torch.tensor([len(string) for string in codes], device=batch.positions.device)[:, None]
        positions = (batch.positions[:, batch.action_slots] + moved).flatten(1)
        return codes, integrate(model, batch, steps, cache, positions)


def _write(
    model: VisionLanguageAction,
    batch: PackedBatch,
    writer: Writer,
    grammars: Sequence[Grammar],
    seed: int,
    cache: PrefixCache,
    *,
    keep_last: bool,
) -> list[Codes]:
    """Fill the cache with every prompt and its codes; with the last code of each only for `keep_last`."""
    pens = [
        _Pen(grammar=grammar, generator=np.random.default_rng(seed + place), codes=[], legal=grammar.legal([]))
        for place, grammar in enumerate(grammars)
    ]
    firsts = batch.positions[:, batch.action_slots[:, 0]]
    hidden = run_prefix(model, batch, cache)
    writing = list(range(len(pens)))
    while writing:
        _write_one(model, writer, [pens[place] for place in writing], hidden)
        going_on = [place for place in writing if len(pens[place].legal)]
        running = writing if keep_last else going_on
        if running:
            hidden = _run_last(model, writer, pens, running, firsts, cache)
            hidden = hidden[[running.index(place) for place in going_on]]
        writing = going_on
    return [np.asarray(pen.codes, np.int64) for pen in pens]


def _write_one(model: VisionLanguageAction, writer: Writer, pens: Sequence[_Pen], hidden: Tensor) -> None:
    """Let each pen write the code that follows hidden states [n, H]."""
    first = writer.ids.first
    logits = model.language.logits(hidden)[:, first : first + writer.ids.num_codes].float()
    codes = writer.choose(logits, [pen.legal for pen in pens], [pen.generator for pen in pens])
    for pen, code in zip(pens, codes, strict=True):
        pen.write(code)


def _run_last(
    model: VisionLanguageAction,
    writer: Writer,
    pens: Sequence[_Pen],
    running: Sequence[int],
    firsts: Tensor,
    cache: PrefixCache,
) -> Tensor:
    """Hidden states [n, H] at the code that each of the documents `running` got last; the cache keeps them."""
    bounds = tuple(accumulate((int(place in running) for place in range(len(pens))), initial=0))
    tokens = [writer.ids.first + pens[place].codes[-1] for place in running]
    passed = torch.tensor([len(pens[place].codes) - 1 for place in running], device=firsts.device)
    words = model.language.embed(torch.tensor(tokens, device=firsts.device))
    hidden = run_rows(model, words, bounds, firsts[:, list(running)] + passed)
    cache.extend(bounds)
    return hidden
