"""Every way in which a directory or a checkpoint can be wrong is refused by the tensor's and the file's name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flagscale_vla.config.checkpoints import find_checkpoint
from flagscale_vla.config.checks import ConfigError
from flagscale_vla.hf import exporter
from flagscale_vla.mcore.storage import StoredTensors, WholeWriter
from tests.hf.directories import (
    describe,
    export_checkpoint,
    import_directory,
    read_tensors,
    small_model,
    write_checkpoint,
    write_directory,
    write_tensors,
)

NORM = "model.norm.weight"
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def without(name: str) -> Change:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_one(name: str, value: Tensor) -> Change:
    return lambda tensors: tensors | {name: value}


CHANGES = {
    "missing": (without(NORM), ["are missing", "model.language_model.norm.weight"]),
    "no place": (with_one("model.extra.weight", torch.ones(3)), ["have no place", "model.extra.weight", "(in model"]),
    "strange": (with_one("wheel.weight", torch.ones(3)), ["wheel.weight", "model.safetensors"]),
    "twice": (
        with_one("model.language_model.norm.weight", torch.ones(64)),
        ["same one in two spellings", NORM, "model.language_model.norm.weight", "model.safetensors"],
    ),
    "shape": (with_one(NORM, torch.ones(63)), [f"tensor {NORM} in", "model.safetensors", "[63]", "[64]"]),
    "transposed": (
        lambda tensors: tensors | {"visual.patch_embed.proj.weight": torch.ones(32, 1176)},
        ["visual.patch_embed.proj.weight", "[32, 1176]", "[32, 3, 2, 14, 14]"],
    ),
    "not finite": (
        with_one(NORM, torch.full((64,), torch.nan)),
        ["not finite", "language.decoder.final_layernorm.weight"],
    ),
    "integers": (with_one(NORM, torch.ones(64, dtype=torch.int8)), [f"tensor {NORM} in", "I8", "BF16, F16, F32"]),
    "mixed": (
        with_one("model.layers.0.self_attn.k_proj.weight", torch.ones(32, 64, dtype=torch.bfloat16)),
        ["model.layers.0.self_attn.k_proj.weight", "BF16", "F32", "model.layers.0.self_attn.q_proj.weight"],
    ),
    "untied": (with_one("lm_head.weight", torch.ones(512, 64)), ["lm_head.weight", "differs", "embed_tokens", "tied"]),
    "part of a head": (with_one("state_proj.weight", torch.ones(64, 8)), ["flow head", "missing", "state_proj.bias"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_wrong_tensor_is_named(case: str, tmp_path: Path) -> None:
    change, words = CHANGES[case]
    write_directory(tmp_path / "in", "qwen2_5_vl")
    write_tensors(tmp_path / "in", change(read_tensors(tmp_path / "in")))
    refused(tmp_path, words)


def refused(tmp_path: Path, words: list[str]) -> None:
    """Importing `in` fails in a message with these words, and leaves no output."""
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        import_directory(tmp_path / "in", tmp_path / "out")
    assert [word for word in words if word not in str(error.value)] == []
    assert not (tmp_path / "out").exists()


def broken_index(tmp_path: Path) -> Path:
    write_directory(tmp_path / "in", "qwen2_5_vl", files=2)
    return tmp_path / "in" / "model.safetensors.index.json"


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    broken_index(tmp_path)
    (tmp_path / "in" / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, ["model-00002-of-00002.safetensors is missing"])


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    broken_index(tmp_path)
    file = tmp_path / "in" / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    refused(tmp_path, [str(file), "no whole safetensors file"])


def test_a_tensor_that_is_in_two_files_is_named(tmp_path: Path) -> None:
    broken_index(tmp_path)
    both = read_tensors(tmp_path / "in", "model-00002*")
    first = sorted(read_tensors(tmp_path / "in", "model-00001*"))[0]
    file = tmp_path / "in" / "model-00002-of-00002.safetensors"
    save_file(both | {first: torch.ones(1)}, file)
    refused(tmp_path, [f"tensor {first} in", "model-00002-of-00002", "model-00001-of-00002", "too"])


def test_a_tensor_that_is_not_where_the_index_says_is_named(tmp_path: Path) -> None:
    index = broken_index(tmp_path)
    content = json.loads(index.read_text())
    name, file = next(iter(content["weight_map"].items()))
    other = {"model-00001-of-00002.safetensors": "2", "model-00002-of-00002.safetensors": "1"}[file]
    content["weight_map"][name] = f"model-0000{other}-of-00002.safetensors"
    index.write_text(json.dumps(content))
    refused(tmp_path, [f"tensor {name} is missing from", f"model-0000{other}-of-00002.safetensors"])


def test_a_tensor_that_the_index_leaves_out_is_named(tmp_path: Path) -> None:
    index = broken_index(tmp_path)
    content = json.loads(index.read_text())
    del content["weight_map"][NORM]
    index.write_text(json.dumps(content))
    refused(tmp_path, [f"tensor {NORM} in", "is not in model.safetensors.index.json"])


def test_an_index_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    index = broken_index(tmp_path)
    index.write_text(json.dumps({"weight_map": {NORM: "../model.safetensors"}}))
    refused(tmp_path, [str(index), "not a file of this folder"])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_a_directory_lacks_is_named(name: str, tmp_path: Path) -> None:
    write_directory(tmp_path / "in", "qwen2_5_vl")
    (tmp_path / "in" / name).unlink()
    refused(tmp_path, [name])


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, ["source=", "must be a folder"])


def test_what_is_finished_says_so_and_what_is_not_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_directory(tmp_path / "in", "qwen2_5_vl")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_text("")
    import_directory(tmp_path / "in", tmp_path / "out")
    assert "beginning anew" in caplog.text
    assert not list((tmp_path / "out").rglob("half"))
    stamp = (tmp_path / "out" / "summary.json").stat().st_mtime_ns
    import_directory(tmp_path / "in", tmp_path / "out")
    assert "is finished already" in caplog.text
    assert (tmp_path / "out" / "summary.json").stat().st_mtime_ns == stamp


def test_other_results_are_not_written_over(tmp_path: Path) -> None:
    write_directory(tmp_path / "in", "qwen2_5_vl")
    import_directory(tmp_path / "in", tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "out")
    with pytest.raises(ConfigError, match="other settings"):
        export_checkpoint(tmp_path / "ours", tmp_path / "out", "dtype=bfloat16")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="holds other files"):
        import_directory(tmp_path / "in", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    ("form", "words"),
    [("eo1", "form=eo1: the checkpoint has no flow head"), ("qwen2_vl", "form=qwen2_vl: the checkpoint's model is")],
)
def test_a_form_that_does_not_fit_is_refused(form: str, words: str, tmp_path: Path) -> None:
    write_directory(tmp_path / "in", "qwen2_5_vl")
    import_directory(tmp_path / "in", tmp_path / "ours")
    with pytest.raises(ConfigError, match=re.escape(words)):
        export_checkpoint(tmp_path / "ours", tmp_path / "out", f"form={form}")


@pytest.mark.parametrize(("change", "what"), [(-1, "is missing"), (1, "has no place in it")])
def test_a_checkpoint_with_other_tensors_is_refused(change: int, what: str, tmp_path: Path) -> None:
    model = small_model("qwen2_5_vl")
    tensors = write_checkpoint(tmp_path / "ours", model)
    folder = find_checkpoint(tmp_path / "ours")
    for path in (folder / "weights").iterdir():
        path.unlink()
    name = "vision.merger.norm.weight" if change < 0 else "vision.wheel.weight"
    kept = {key: value for key, value in tensors.items() if key != name} | ({name: torch.ones(1)} if change > 0 else {})
    with WholeWriter(folder / "weights") as writer:
        for key, value in kept.items():
            writer.write(key, value)
    describe(folder, model)
    with pytest.raises(ValueError, match=re.escape(f"tensor {name} {what}")):
        export_checkpoint(tmp_path / "ours", tmp_path / "out")


def test_a_damaged_checkpoint_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ours", small_model("qwen2_5_vl"))
    folder = find_checkpoint(tmp_path / "ours") / "weights"
    name = "language.decoder.layers.2.mlp.linear_fc2.weight"
    stored = StoredTensors.open(folder)._first(name)
    data = bytearray(stored.file.read_bytes())
    data[stored.at] ^= 1
    stored.file.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(name)):
        export_checkpoint(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_disk_did_not_keep_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit of the export that flips between writing and reading back."""
    write_checkpoint(tmp_path / "ours", small_model("qwen2_5_vl"))
    write = exporter.write_beside

    def write_and_flip(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        file = tmp_path / "out.partial" / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(exporter, "write_beside", write_and_flip)
    with pytest.raises(ValueError, match=r"differ from language\."):
        export_checkpoint(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()
