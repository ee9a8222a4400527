"""A directory that is imported and exported again is the same, bit for bit, and transformers loads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from flagscale_vla.config.checkpoints import find_checkpoint
from flagscale_vla.hf.spelling import canonical_name
from tests.hf.directories import (
    export_checkpoint,
    import_directory,
    read_tensors,
    small_model,
    write_checkpoint,
    write_directory,
    write_tensors,
)
from tests.model.rows import FAMILIES


def canonical(folder: Path) -> dict[str, torch.Tensor]:
    return {canonical_name(name): tensor for name, tensor in read_tensors(folder).items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert {name: tensor.dtype for name, tensor in one.items()} == {name: t.dtype for name, t in other.items()}
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def load_peer(folder: Path) -> tuple[torch.nn.Module, dict[str, object]]:
    """transformers' model of a directory, and what it says of the loading."""
    return transformers.AutoModelForImageTextToText.from_pretrained(
        folder, local_files_only=True, dtype="auto", output_loading_info=True
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("new_names", "files"), [(False, 1), (True, 3)], ids=["old names", "new names, 3 files"])
def test_out_is_what_came_in(family: str, tied: bool, new_names: bool, files: int, tmp_path: Path) -> None:
    write_directory(tmp_path / "in", family, tied, new_names=new_names, files=files, dtype="bfloat16")
    imported = import_directory(tmp_path / "in", tmp_path / "ours")
    shards = "max_shard_bytes=100000" if files > 1 else "max_shard_bytes=5000000000"
    exported = export_checkpoint(tmp_path / "ours", tmp_path / "out", shards)
    assert_same(canonical(tmp_path / "in"), canonical(tmp_path / "out"))
    assert imported["verified"]
    assert exported["verified"]
    assert imported["parameters"] == exported["parameters"]
    assert exported["tensors"] == len(read_tensors(tmp_path / "in"))
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file() == (files > 1)
    model, told = load_peer(tmp_path / "out")
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    assert model.dtype is torch.bfloat16


def test_names_are_those_of_the_hub(tmp_path: Path) -> None:
    """What `transformers` itself saves, and what loaders that know no other names read."""
    write_directory(tmp_path / "in", "internvl", tied=False, new_names=True)
    import_directory(tmp_path / "in", tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "out")
    model, _ = load_peer(tmp_path / "out")
    model.save_pretrained(tmp_path / "theirs")
    assert read_tensors(tmp_path / "out").keys() == read_tensors(tmp_path / "theirs").keys()


def test_small_files_travel(tmp_path: Path) -> None:
    write_directory(tmp_path / "in", "qwen2_5_vl")
    (tmp_path / "in" / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (tmp_path / "in" / "modeling.py").write_text("raise SystemExit")
    import_directory(tmp_path / "in", tmp_path / "ours")
    kept = {path.name for path in (find_checkpoint(tmp_path / "ours") / "hf").iterdir()}
    assert kept == {"config.json", "generation_config.json", "tokenizer.json", "chat_template.json"}
    export_checkpoint(tmp_path / "ours", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 1.0
    assert (tmp_path / "out" / "chat_template.json").is_file()
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_the_page_shows_parts_sizes_and_names(tmp_path: Path) -> None:
    write_directory(tmp_path / "in", "qwen2_5_vl")
    summary = import_directory(tmp_path / "in", tmp_path / "ours")
    page = (tmp_path / "ours" / "report.html").read_text()
    parts = [
        int(found.replace(",", ""))
        for found in re.findall(r"<td>(?:language|vision)</td><td>\d+</td><td>([\d,]+)", page)
    ]
    assert len(parts) == 2
    assert sum(parts) == summary["parameters"]
    assert page.count("data:image/png;base64,") == 1
    assert "<td>language.decoder.final_layernorm.weight</td><td>model.language_model.norm.weight</td>" in page


@pytest.mark.parametrize("form", ["plain", "eo1"])
def test_a_trained_head_comes_back_too(form: str, tmp_path: Path) -> None:
    model = small_model("qwen2_5_vl")
    write_checkpoint(tmp_path / "ours", model, torch.bfloat16)
    export_checkpoint(tmp_path / "ours", tmp_path / "out", f"form={form}", "max_shard_bytes=200000")
    summary = import_directory(tmp_path / "out", tmp_path / "again", model.flow)
    assert summary["flow_head"]
    assert_same(weights(tmp_path / "ours"), weights(tmp_path / "again"))


def test_a_head_of_another_width_is_told_by_its_setting(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ours", small_model("qwen2_5_vl"), torch.bfloat16)
    export_checkpoint(tmp_path / "ours", tmp_path / "out")
    with pytest.raises(ValueError, match=r"state_proj.weight in .*flow_head.safetensors .*flow\.width"):
        import_directory(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_eo1s_own_directory_comes_in(dtype: str, tmp_path: Path) -> None:
    """Nothing but what EO-1's code saves: no recipe, names under `vlm_backbone`."""
    model = small_model("qwen2_5_vl")
    write_checkpoint(tmp_path / "ours", model, torch.bfloat16)
    export_checkpoint(tmp_path / "ours", tmp_path / "out", "form=eo1", f"dtype={dtype}")
    for name in ("recipe.json", "report.html", "summary.json", "config.yaml"):
        (tmp_path / "out" / name).unlink()
    import_directory(tmp_path / "out", tmp_path / "again", model.flow)
    there = weights(tmp_path / "again")
    assert there["language.decoder.final_layernorm.weight"].dtype is getattr(torch, dtype)
    ours = weights(tmp_path / "ours")
    assert_same(ours, {name: value.to(ours[name].dtype) for name, value in there.items()})


def weights(output: Path) -> dict[str, torch.Tensor]:
    from flagscale_vla.mcore.storage import StoredTensors

    stored = StoredTensors.open(find_checkpoint(output) / "weights")
    return {name: stored.read(name) for name in stored.weights}


def test_an_output_layer_that_is_the_embedding_is_written_once(tmp_path: Path) -> None:
    write_directory(tmp_path / "in", "qwen2_5_vl", tied=True)
    tensors = read_tensors(tmp_path / "in")
    write_tensors(tmp_path / "in", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    import_directory(tmp_path / "in", tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "out")
    assert_same(read_tensors(tmp_path / "out"), tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_are_written_in_the_dtype_that_is_asked_for(dtype: str, tmp_path: Path) -> None:
    model = small_model("qwen2_5_vl")
    ours = write_checkpoint(tmp_path / "ours", model)
    export_checkpoint(tmp_path / "ours", tmp_path / "out", f"dtype={dtype}")
    written = read_tensors(tmp_path / "out")["model.norm.weight"]
    assert torch.equal(written, ours["language.decoder.final_layernorm.weight"].to(getattr(torch, dtype)))
    head = read_tensors(tmp_path / "out", "flow_head.safetensors")
    assert {tensor.dtype for tensor in head.values()} == {torch.float32}
    assert load_peer(tmp_path / "out")[0].dtype is getattr(torch, dtype)
