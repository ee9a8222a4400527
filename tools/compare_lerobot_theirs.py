"""LeRobot's side of `compare_lerobot.py`, run by an interpreter that has it; nothing of ours is imported.

    python tools/compare_lerobot_theirs.py FOLDER EXPORT [MODULE]

MODULE is imported first, as a stand-in for what LeRobot imports but a CPU does not have. FOLDER holds
`inputs.safetensors` and `words.json`; `answers.safetensors` and `versions.json` are left there.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Judge:
    """LeRobot's policy and preprocessor of an export; its keys must be the policy's exactly."""

    def __init__(self, export: str) -> None:
        policies = importlib.import_module("lerobot.configs.policies")
        modeling = importlib.import_module("lerobot.policies.eo1.modeling_eo1")
        factory = importlib.import_module("lerobot.policies.factory")
        config = policies.PreTrainedConfig.from_pretrained(export)
        config.device = "cpu"
        # As LeRobot's own scripts do: else it would fetch the weights of `vlm_base` first.
        config.pretrained_path = export
        self.policy = modeling.EO1Policy.from_pretrained(export, config=config, strict=True).float()
        self.before, _ = factory.make_pre_post_processors(config, pretrained_path=export)
        self.cameras = [key for key, feature in config.input_features.items() if feature.type.value == "VISUAL"]

    def preprocess(self, sample: dict[str, Tensor], task: str) -> dict[str, Any]:
        """A raw frame through LeRobot's own preprocessor: normalised values, tokens, patches."""
        pictures = {key: sample[f"picture{place}"][None] for place, key in enumerate(self.cameras)}
        raw = {"observation.state": sample["raw_state"][None], "action": sample["raw_action"][None], "task": [task]}
        found: dict[str, Any] = self.before(pictures | raw)
        return found

    def translate(self, tokens: Tensor, special: dict[str, int]) -> Tensor:
        """Our token ids i64[T] as LeRobot's: EO-1's tokens have other ids there."""
        tokenizer = next(step for step in self.before.steps if hasattr(step, "_processor"))._processor.tokenizer
        translated = tokens.clone()
        for token, number in special.items():
            translated[tokens == number] = tokenizer.convert_tokens_to_ids(token)
        return translated

    @torch.no_grad()
    def answer(self, sample: dict[str, Tensor], task: str, special: dict[str, int]) -> dict[str, Tensor]:
        """Loss, velocities and denoised actions of our inputs, and what LeRobot makes of the raw frame."""
        made = self.preprocess(sample, task)
        model = self.policy.model
        model.sample_time = lambda *_: sample["time"]
        model.sample_noise = lambda *_: sample["noise"]
        tokens = self.translate(sample["tokens"], special)[None]
        pictures = (tokens == model.vlm_backbone.config.image_token_id).int()
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "mm_token_type_ids": pictures}
        inputs |= {name: sample[name] for name in ("pixel_values", "image_grid_thw", "states")}
        inputs |= {name: made[name] for name in ("state_token_id", "action_token_id")}
        velocities: list[Tensor] = []
        hook = model.action_out_proj.register_forward_hook(lambda module, args, output: velocities.append(output))
        loss = model(**inputs, action=sample["actions"], action_is_pad=sample["action_is_pad"])
        hook.remove()
        return {
            "our_tokens": tokens[0],
            "tokens": made["input_ids"][0],
            "pixels": made["pixel_values"],
            "states": self.policy.prepare_state(made["observation.state"]),
            "chunk": self.policy.prepare_action(made["action"]),
            "flow_loss": loss,
            "velocities": velocities[0].view_as(sample["actions"]),
            "actions": model.sample_actions(**inputs),
        }


def main() -> None:
    """Answer every sample."""
    folder, export = Path(sys.argv[1]), sys.argv[2]
    for module in sys.argv[3:]:
        importlib.import_module(module)
    samples: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_file(folder / "inputs.safetensors").items():
        number, quantity = name.split(".")
        samples[number][quantity] = tensor
    judge = Judge(export)
    words = json.loads((folder / "words.json").read_text())
    answers = {
        f"{number}.{quantity}": tensor.contiguous()
        for number, sample in samples.items()
        for quantity, tensor in judge.answer(sample, words["task"], words["special"]).items()
    }
    save_file(answers, folder / "answers.safetensors")
    names = ("torch", "transformers", "lerobot")
    (folder / "versions.json").write_text(json.dumps({name: version(name) for name in names}))


if __name__ == "__main__":
    main()
