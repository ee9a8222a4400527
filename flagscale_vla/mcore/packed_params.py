"""Documents as Megatron-core describes them to Transformer Engine."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@lru_cache(maxsize=256)
def packed_params(bounds: tuple[int, ...], device: torch.device) -> PackedSeqParams:
    """Megatron-core's description of documents, from their bounds; an empty document is left out.

    The bounds are put on `device` once for all layers.
    """
    longest = max(end - start for start, end in pairwise(bounds))
    cu_seqlens = torch.tensor(sorted(set(bounds)), dtype=torch.int32).to(device)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
