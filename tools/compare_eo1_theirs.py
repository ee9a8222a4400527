"""EO-1's side of `compare_eo1.py`, run by an interpreter that has what EO-1's code needs; nothing of ours is imported.

    python tools/compare_eo1_theirs.py FOLDER EXPORT EO1 float32|float64

The last is what the sines and cosines of flow time are computed in; EO-1 takes float32. FOLDER holds
`inputs.safetensors`; `answers.safetensors` and `versions.json` are left there.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def computed_in(dtype: torch.dtype, embed: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """EO-1's own embedding of flow time, its constants and angles in another dtype."""

    def embedding(time: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        torch.set_default_dtype(dtype)
        found = embed(time.to(dtype), *args, **kwargs).float()
        torch.set_default_dtype(torch.float32)
        return found

    return embedding


def open_model(export: str, eo1: str, time_dtype: torch.dtype) -> Any:
    """EO-1's own class with the exported weights; every tensor must be there, and none may be left over."""
    sys.path.insert(0, eo1)
    module = importlib.import_module("eo.model.modeling_eo1")
    module.create_sinusoidal_pos_embedding = computed_in(time_dtype, module.create_sinusoidal_pos_embedding)
    model, report = module.EO1VisionFlowMatchingModel.from_pretrained(
        export, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        sys.exit(f"{export} is not what EO-1's model takes: {wrong}")
    return model


@torch.no_grad()
def answer(model: Any, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions, losses and velocities of one sample in a row of its own, and its actions from pure noise."""
    tokens = sample["tokens"][None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs |= {name: sample[name] for name in ("pixel_values", "image_grid_thw", "states") if name in sample}
    positions, _ = model.vlm_backbone.get_rope_index(
        tokens, sample.get("image_grid_thw"), attention_mask=inputs["attention_mask"]
    )
    chunks = {name: sample[name] for name in ("actions", "action_is_pad") if name in sample}
    velocities: list[Tensor] = []
    if chunks:
        model.sample_time = lambda *_: sample["time"]
        model.sample_noise = lambda *_: sample["noise"]
    hook = model.action_out_proj.register_forward_hook(lambda module, args, output: velocities.append(output))
    # In evaluation mode a forward pass with states draws actions instead.
    found = model.train()(**inputs, **chunks, labels=sample["labels"][None])
    hook.remove()
    answers = {"positions": positions[:, 0], "text_loss": found.ar_loss}
    if chunks:
        answers |= {"flow_loss": found.fm_loss, "velocities": velocities[0].view_as(sample["actions"])}
    if "prompt_length" in sample:
        length = int(sample["prompt_length"])
        prompt = inputs | {name: inputs[name][:, :length] for name in ("input_ids", "attention_mask")}
        answers["actions"] = model.eval().sample_actions(**prompt)[0]
    return answers


def main() -> None:
    """Answer every sample."""
    folder, export, eo1 = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    time_dtype = {"float32": torch.float32, "float64": torch.float64}[sys.argv[4]]
    samples: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_file(folder / "inputs.safetensors").items():
        number, quantity = name.split(".")
        samples[number][quantity] = tensor
    model = open_model(export, eo1, time_dtype)
    answers = {
        f"{number}.{quantity}": tensor.contiguous()
        for number, sample in samples.items()
        for quantity, tensor in answer(model, sample).items()
    }
    save_file(answers, folder / "answers.safetensors")
    (folder / "versions.json").write_text(json.dumps({name: version(name) for name in ("torch", "transformers")}))


if __name__ == "__main__":
    main()
