"""Where a run's weights come from: a sound checkpoint behind a damaged one, or another model's backbone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from flagscale_vla.config.checkpoint_files import DamagedError, file_digests, read_metadata, write_metadata
from flagscale_vla.config.checkpoints import METADATA, WEIGHTS, checkpoint_folder, latest
from flagscale_vla.mcore.storage import StoredTensors, WholeWriter
from flagscale_vla.train.pretrain import run
from tests.train.settings import small_run
from tests.train.weights import assert_same_weights, figures, load_tensors, write_small_shards

STEADY = ("optim.warmup_steps=0", "optim.final_share=1.0", "checkpoint.every=1", "checkpoint.keep=5")
STILL = [f"optim.{part}.lr=1e-12" for part in ("vision", "merger", "language", "head")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: str) -> Path:
    """A checkpoint after one step."""
    output = tmp_path_factory.mktemp("trained")
    run(small_run(output, shards, *STEADY, "steps=1"))
    return checkpoint_folder(output, 1)


def flip_a_bit(folder: Path, kind: str) -> None:
    """Damage a tensor whose name begins with `kind`."""
    manifest = json.loads((folder / WEIGHTS / "rank_00000.json").read_text())
    piece = random.choice([piece for piece in manifest["pieces"] if piece["name"].startswith(kind)])
    path = folder / WEIGHTS / "rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[piece["at"] + random.randrange(4 * (piece["stop"] - piece["start"]))] ^= 4
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_put_aside_and_the_run_goes_on_from_the_one_before(
    tmp_path: Path, shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, unbroken = tmp_path / "damaged", tmp_path / "unbroken"
    run(small_run(damaged, shards, *STEADY, "steps=2"))
    flip_a_bit(checkpoint_folder(damaged, 2), "exp_avg_sq/")
    run(small_run(damaged, shards, *STEADY, "steps=3"))
    run(small_run(unbroken, shards, *STEADY, "steps=3"))
    assert "rank_00000.safetensors was damaged: tensor " in caplog.text
    assert "is put aside as damaged_step_00000002; going on from the one before" in caplog.text
    assert (damaged / "checkpoints" / "damaged_step_00000002" / METADATA).is_file()
    assert figures(damaged) == figures(unbroken)
    for step in (2, 3):
        assert_same_weights(checkpoint_folder(damaged, step), checkpoint_folder(unbroken, step))


def test_damaged_weights_are_no_start(tmp_path: Path, shards: str) -> None:
    run(small_run(tmp_path / "first", shards, *STEADY, "steps=1"))
    flip_a_bit(checkpoint_folder(tmp_path / "first", 1), "language.")
    with pytest.raises(DamagedError, match="does not have the sha256 it was written with"):
        run(small_run(tmp_path / "next", shards, "steps=1", f"init={tmp_path / 'first'}"))


def rewrite(source: Path, target: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint like `source` with other tensors."""
    for path in source.rglob("*"):
        if path.is_file() and WEIGHTS not in path.parts and path.name != METADATA:
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    with WholeWriter(target / WEIGHTS) as writer:
        for name, tensor in weights.items():
            writer.write(name, tensor)
    metadata = read_metadata(source)
    metadata.digests.clear()
    metadata.digests.update(file_digests(target, ["recipe", "config.yaml", f"{WEIGHTS}/rank_00000.json"]))
    write_metadata(target, metadata)
    return target


def start_from(init: Path, output: Path, shards: str, *overrides: str) -> dict[str, torch.Tensor]:
    """The weights of a run that began with `init` and moved nothing."""
    run(small_run(output, shards, *STEADY, *STILL, "steps=1", f"init={init}", *overrides))
    newest = latest(output)
    assert newest is not None
    return load_tensors(newest)


def test_a_backbone_without_a_head_is_a_start_and_what_is_drawn_anew_is_told(
    tmp_path: Path, shards: str, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = StoredTensors.open(trained / WEIGHTS)
    backbone = {name: stored.read(name) for name in stored.weights if not name.startswith("flow_")}
    init = rewrite(trained, tmp_path / "backbone", {**backbone, "value_head.weight": torch.ones(2)})
    begun = start_from(init, tmp_path / "run", shards)
    assert all(torch.allclose(begun[name], tensor, atol=1e-6) for name, tensor in backbone.items())
    anew = [line for line in caplog.messages if "drawn anew" in line]
    assert len(anew) == sum(name.startswith("flow_") for name in stored.weights)
    assert any("flow_out.action_out_proj.0.weight is not there in this shape" in line for line in anew)
    assert [line for line in caplog.messages if "value_head.weight is there and not used" in line]


def test_a_head_of_another_width_is_drawn_anew_where_its_shape_differs(
    tmp_path: Path, shards: str, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = start_from(trained, tmp_path, shards, "model.flow.width=16")
    kept = StoredTensors.open(trained / WEIGHTS).read("flow_in.action_time_mlp_in.weight")
    assert torch.allclose(begun["flow_in.action_time_mlp_in.weight"], kept, atol=1e-6)
    anew = {line.split(": ")[1].split(" ")[0] for line in caplog.messages if "drawn anew" in line}
    assert anew == {
        "flow_in.state_proj.weight",
        "flow_in.action_in_proj.weight",
        "flow_out.action_out_proj.1.weight",
        "flow_out.action_out_proj.1.bias",
    }


def test_a_backbone_of_which_a_tensor_is_missing_is_refused(tmp_path: Path, shards: str, trained: Path) -> None:
    stored = StoredTensors.open(trained / WEIGHTS)
    lost = "language.decoder.final_layernorm.weight"
    init = rewrite(trained, tmp_path / "lost", {name: stored.read(name) for name in stored.weights if name != lost})
    with pytest.raises(ValueError, match=f"{lost} of shape \\(64,\\) is needed, it is not there"):
        start_from(init, tmp_path / "run", shards)
