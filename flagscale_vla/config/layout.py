"""Whether a model fits a parallel layout: the rules that Megatron-core would break on, each with a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flagscale_vla.config.checks import check
from flagscale_vla.config.model import LanguageConfig, ModelConfig
from flagscale_vla.config.parallel import ParallelConfig, Recompute, RecomputeModule

VOCAB_UNIT = 64
"""Rows of an embedding that has grown are padded to a multiple of this for each tensor rank."""

Rule = tuple[str, bool]
"""What must hold, and whether it does."""


def check_layout(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse a layout that the model cannot be split by.

    Raises:
        ConfigError: naming the degree, its value, the rule, and a degree that would pass.
    """
    _check_tensor(model, parallel.tensor)
    _check_stages(model.language.layers, parallel)
    per_chunk = [count // parallel.virtual for count in parallel.stage_layers(model.language.layers)]
    parallel.language_recompute.check("parallel.language_recompute", per_chunk)
    vision = parallel.vision_recompute
    vision.check("parallel.vision_recompute", [model.vision.layers])
    modules = [module.value for module in vision.modules]
    ok = vision.granularity is not Recompute.selective or modules == [RecomputeModule.core_attn.value]
    rule = "must be core_attn alone: Megatron-core 0.16 cannot recompute an MLP with biases, as the vision tower's is"
    shown = f"[{','.join(modules)}]"
    check(ok, "parallel.vision_recompute.modules", shown, rule, "[core_attn]")


def _check_tensor(model: ModelConfig, tensor: int) -> None:
    passes = largest(tensor, lambda degree: all(ok for _, ok in _tensor_rules(model, degree)))
    for rule, ok in _tensor_rules(model, tensor):
        check(ok, "parallel.tensor", tensor, rule, passes)
    vocab = model.language.vocab
    rule = f"must be a multiple of parallel.tensor={tensor}"
    check(vocab % tensor == 0, "model.language.vocab", vocab, rule, (vocab // tensor + 1) * tensor)


def _tensor_rules(model: ModelConfig, tensor: int) -> Iterable[Rule]:
    language, vision = model.language, model.vision
    split = {
        "model.language.heads": language.heads,
        "model.language.intermediate": language.intermediate,
        "model.vision.heads": vision.heads,
        "model.vision.intermediate": vision.intermediate,
    }
    for key, size in split.items():
        yield f"must divide {key}={size}", size % tensor == 0
    groups = language.kv_heads
    rule = f"must divide model.language.kv_heads={groups}, or be a multiple of it, so that ranks can share a head"
    yield rule, groups % tensor == 0 or tensor % groups == 0
    rows = qkv_rows(language)
    yield f"must divide the rows of queries, keys and values, {rows}", rows % tensor == 0


def qkv_rows(language: LanguageConfig) -> int:
    """Rows of the one matrix that makes queries, keys and values."""
    return (language.heads + 2 * language.kv_heads) * language.head_dim


def _check_stages(layers: int, parallel: ParallelConfig) -> None:
    pipeline, virtual, first = parallel.pipeline, parallel.virtual, parallel.first_layers
    if first:
        passes = nearest(first, (count for count in range(1, layers) if _fits(layers, parallel, count)), 0)
        rule = (
            f"must be a multiple of parallel.virtual={virtual}, and leave of model.language.layers={layers} "
            f"a multiple of (parallel.pipeline - 1) x parallel.virtual = {(pipeline - 1) * virtual} above zero"
        )
        check(_fits(layers, parallel, first), "parallel.first_layers", first, rule, passes)
        return
    rule = f"must divide model.language.layers={layers}, or parallel.first_layers set the first stage apart"
    passes = largest(pipeline, lambda degree: layers % degree == 0)
    check(layers % pipeline == 0, "parallel.pipeline", pipeline, rule, passes)
    each = layers // pipeline
    rule = f"must divide the layers of each pipeline stage, {each}"
    check(each % virtual == 0, "parallel.virtual", virtual, rule, largest(virtual, lambda degree: each % degree == 0))


def _fits(layers: int, parallel: ParallelConfig, first: int) -> bool:
    rest, pieces = layers - first, (parallel.pipeline - 1) * parallel.virtual
    return first % parallel.virtual == 0 and rest > 0 and rest % pieces == 0


def check_rows(parallel: ParallelConfig, pack_length: int, least: int, global_packs: int) -> None:
    """Refuse rows that the layout cannot split: of `pack_length` tokens, `least` at least, `global_packs` a step."""
    zigzag = 2 * parallel.context if parallel.context > 1 else 1
    unit = zigzag * (parallel.tensor if parallel.sequence else 1)
    rule = f"must be a multiple of {unit} (2 x parallel.context, x parallel.tensor with parallel.sequence)"
    check(pack_length % unit == 0, "data.pack_length", pack_length, rule, (pack_length // unit + 1) * unit)
    rule = f"must hold a picture of data.image.max_pixels and a chunk of action.horizon: {least} tokens and more"
    check(pack_length >= least, "data.pack_length", pack_length, rule, (2 * least // unit + 1) * unit)
    unit = parallel.data * (parallel.pipeline if parallel.virtual > 1 else 1)
    rule = f"must be a multiple of {unit} (parallel.data, x parallel.pipeline with parallel.virtual above 1)"
    check(global_packs % unit == 0, "global_packs", global_packs, rule, (global_packs // unit + 1) * unit)


def check_vocab(vocab: int, tensor: int) -> None:
    """Refuse an embedding with codes behind its words that is no multiple of 64 rows for each tensor rank."""
    unit = VOCAB_UNIT * tensor
    rule = f"must be a multiple of {unit} (64 x parallel.tensor) where codes have ids behind the words'"
    check(vocab % unit == 0, "model.language.vocab", vocab, rule, (vocab // unit + 1) * unit)


def largest(limit: int, passes: Callable[[int], bool]) -> int:
    """The largest degree up to `limit` that passes; 1 always does."""
    return max(degree for degree in range(1, limit + 1) if degree == 1 or passes(degree))


def nearest(value: int, choices: Iterable[int], otherwise: int) -> int:
    """The choice closest to `value`, or `otherwise` where there is none."""
    return min(choices, key=lambda choice: abs(choice - value), default=otherwise)
