"""What torch's and Transformer Engine's variable-length kernels are told describes the attention that the CPU computes.

The kernels themselves run on a GPU alone: see `test_gpu.py`.
"""

from __future__ import annotations

import ast
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from megatron.core.extensions import transformer_engine as te_wrappers
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from flagscale_vla.mcore.attention import attend
from flagscale_vla.mcore.documents import AttentionPlan, plan_attention, plan_continuation
from flagscale_vla.mcore.packed_params import packed_params
from flagscale_vla.mcore.varlen import attend_pieces, has_kernel, lay_end_to_end, varlen_attention

CPU, META = torch.device("cpu"), torch.device("meta")
BOUNDS = (0, 5, 6, 6, 19, 32)
HEADS, KV_HEADS, WIDTH = 4, 2, 16
PLANS = {
    "causal": (plan_attention(BOUNDS, 32, True), True),
    "causal, cut": (plan_attention(BOUNDS, 32, True, longest=4), True),
    "whole": (plan_attention(BOUNDS, 32, False), False),
    "causal, context rank 1 of 2": (plan_attention(BOUNDS, 32, True, 2, 1), True),
    "continued": (plan_continuation((0, 3, 12), (0, 4, 8)), True),
}


def rows(count: int, heads: int, device: torch.device = CPU) -> Tensor:
    return torch.randn(count, heads, WIDTH, generator=torch.Generator().manual_seed(count + heads)).to(device)


def sizes(plan: AttentionPlan) -> tuple[int, int]:
    """Queries of a plan, and the keys that it numbers."""
    pieces = lay_end_to_end(plan, CPU)
    keys = pieces.key_rows.max() + 1 if pieces.key_rows is not None else pieces.key_bounds[-1]
    return int(pieces.query_bounds[-1]), int(keys)


def by_description(plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """What a kernel that is told `lay_end_to_end(plan)` computes, by its documentation."""
    pieces = lay_end_to_end(plan, CPU)
    if pieces.key_rows is not None:
        key, value = key[pieces.key_rows], value[pieces.key_rows]
    spans = zip(pairwise(pieces.query_bounds.tolist()), pairwise(pieces.key_bounds.tolist()), strict=True)
    results = []
    for (start, end), (first, last) in spans:
        mask = torch.ones(end - start, last - first, dtype=torch.bool).tril((last - first) - (end - start))
        q, k, v = (part.transpose(0, 1) for part in (query[start:end], key[first:last], value[first:last]))
        result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if causal else None, enable_gqa=True)
        results.append(result.transpose(0, 1))
    return torch.cat(results)


@pytest.mark.parametrize("name", PLANS)
def test_pieces_describe_what_the_cpu_computes(name: str) -> None:
    plan, causal = PLANS[name]
    num_queries, num_keys = sizes(plan)
    query, key, value = rows(num_queries, HEADS), rows(num_keys, KV_HEADS), rows(num_keys, KV_HEADS) * 2
    described = by_description(plan, query, key, value, causal)
    torch.testing.assert_close(described, attend(plan, query, key, value, causal))


@pytest.mark.parametrize("name", PLANS)
def test_torch_takes_what_it_is_told(name: str) -> None:
    """On meta tensors, which its kernel answers without running: keywords, and the gradients' shapes."""
    plan, causal = PLANS[name]
    num_queries, num_keys = sizes(plan)
    query, key = rows(num_queries, HEADS, META).requires_grad_(), rows(num_keys, KV_HEADS, META).requires_grad_()
    attend_pieces(plan, query, key, key, causal).sum().backward()
    assert query.grad is not None
    assert key.grad is not None
    assert query.grad.shape == query.shape
    assert key.grad.shape == key.shape


def test_documents_that_are_alone_need_no_copy() -> None:
    assert lay_end_to_end(PLANS["causal"][0], CPU).key_rows is None
    assert lay_end_to_end(PLANS["whole"][0], CPU).key_rows is None
    assert lay_end_to_end(PLANS["continued"][0], CPU).key_rows is not None


def test_bounds_are_laid_out_once_for_all_layers() -> None:
    plan = plan_attention(BOUNDS, 32, True)
    assert lay_end_to_end(plan, CPU) is lay_end_to_end(plan_attention(BOUNDS, 32, True), CPU)


def test_a_cpu_has_no_kernel() -> None:
    assert varlen_attention() is not None
    assert not has_kernel(rows(4, HEADS).bfloat16())


def test_transformer_engine_is_told_of_every_document() -> None:
    packed = packed_params(BOUNDS, CPU)
    assert packed.qkv_format == "thd"
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == [0, 5, 6, 19, 32]
    assert packed.cu_seqlens_q.dtype is torch.int32
    assert packed.max_seqlen_q == packed.max_seqlen_kv == int(np.diff(BOUNDS).max())


def test_megatron_hands_transformer_engine_what_it_was_read_for() -> None:
    """A new field would reach TE's attention as a new keyword: read `TEDotProductAttention.forward` again."""
    known = {"qkv_format", "cu_seqlens_q", "cu_seqlens_kv", "cu_seqlens_q_padded", "cu_seqlens_kv_padded"}
    known |= {"max_seqlen_q", "max_seqlen_kv", "local_cp_size", "cp_group"}
    assert {field.name for field in fields(PackedSeqParams)} == known


def parameters_of(name: str, function: str) -> list[str]:
    """Parameters of a method of Megatron-core's wrappers of TE. Without TE they can be read, though not be built."""
    source = ast.parse(Path(te_wrappers.__file__).read_text())
    (wrapper,) = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name)
    (method,) = (node for node in wrapper.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return [argument.arg for argument in (*method.args.args, *method.args.kwonlyargs)]


LINEAR = {"config", "init_method", "bias", "skip_bias_add", "is_expert"}


@pytest.mark.parametrize(
    ("name", "function", "given"),
    [
        ("TEDotProductAttention", "__init__", {"config", "layer_number", "attn_mask_type"}),
        ("TEDotProductAttention", "__init__", {"attention_type", "cp_comm_type", "softmax_scale", "pg_collection"}),
        ("TEDotProductAttention", "forward", {"packed_seq_params"}),
        ("TEColumnParallelLinear", "__init__", LINEAR | {"gather_output"}),
        ("TERowParallelLinear", "__init__", LINEAR | {"input_is_parallel"}),
        ("TENorm", "__new__", {"config", "hidden_size", "eps"}),
    ],
)
def test_megatrons_wrappers_take_what_they_are_given(name: str, function: str, given: set[str]) -> None:
    assert given <= set(parameters_of(name, function))


def test_attention_takes_its_arguments_in_this_order() -> None:
    order = ["self", "query", "key", "value", "attention_mask", "attn_mask_type"]
    assert parameters_of("TEDotProductAttention", "forward")[:6] == order
