"""Compare an export in LeRobot's form, run by LeRobot's own policy `eo1`, with the checkpoint that it was made of.

    python tools/compare_lerobot.py CHECKPOINT --lerobot-python PYTHON [--export DIR] [--first MODULE] [--seed N]

CHECKPOINT is a checkpoint of ours or a run's output folder, and PYTHON an interpreter with `lerobot[eo1]` 0.6.1 or
newer. Without `--export` the export is made first, in a temporary folder. The policy must take its keys strictly.

Made-up frames of the checkpoint's robot go through LeRobot's own preprocessor, and what it makes of them (tokens,
patches, normalised state and actions) is compared with ours. Then both sides get the same inputs in float32, ours as
one packed row, LeRobot's one sample at a time. Compared are velocities, the flow loss, averaged as the export's
config.json tells LeRobot to, and the actions after all Euler steps. Anything above 1e-4 fails, actions above 1e-3.
LeRobot computes the sines of flow time in float64, EO-1 and we in float32: that alone can make 1e-4 to 2e-4.

LeRobot needs a torchvision; where none is built for this machine's torch, `--first` names a module on PYTHONPATH that
declares the missing operators and is imported before anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from compare_samples import INSTRUCTIONS, Case, Maker
from compare_sides import (
    Line,
    Named,
    answer,
    export,
    open_whole,
    padded_steps,
    require,
    run_theirs,
    squared_errors,
    tell,
)
from torch import Tensor

from flagscale_vla.action.vocabulary import ACTION_TOKENS
from flagscale_vla.config.model import VisionKind
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.model.pixels import cut_patches, normalize
from flagscale_vla.records import Action, State


def inputs_of(case: Case) -> Named:
    """A sample as the model reads it, and the raw frame that it was made of, its pictures f32[3, h, w] in [0, 1]."""
    sample = case.sample
    state, action = (next(s for s in case.raw.segments if isinstance(s, kind)) for kind in (State, Action))
    pictures = {
        f"picture{place}": torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        for place, pixels in enumerate(case.pictures)
    }
    return pictures | {
        "raw_state": torch.from_numpy(state.values),
        "raw_action": torch.from_numpy(action.values),
        "tokens": sample.tokens,
        "pixel_values": normalize(cut_patches(sample.pixels, sample.frames, sample.grid), VisionKind.qwen2_5_vl),
        "image_grid_thw": sample.grid,
        "states": sample.states,
        "actions": sample.actions,
        "action_is_pad": padded_steps(sample),
        "noise": sample.noise,
        "time": sample.time,
    }


def words_of(recipe: Recipe) -> dict[str, Any]:
    """The frames' instruction, and our ids of EO-1's tokens."""
    special = {token: recipe.tokenizer.token_to_id(token) for token in ACTION_TOKENS}
    return {"task": INSTRUCTIONS[0], "special": special}


def compare(cases: Sequence[Case], ours: Named, theirs: Named, config: dict[str, Any]) -> list[Line]:
    """The table."""
    lines = []
    for number, case in enumerate(cases):
        their = {name.split(".")[1]: value for name, value in theirs.items() if name.startswith(f"{number}.")}
        counted = supervised_steps(case, config)
        velocities = ours[f"{number}.velocities"]
        pairs = {
            "tokens, LeRobot's own": (their["our_tokens"], their["tokens"]),
            "patches, LeRobot's own": (
                normalize(cut_patches(case.sample.pixels, case.sample.frames, case.sample.grid), VisionKind.qwen2_5_vl),
                their["pixels"],
            ),
            "normalised state, LeRobot's own": (case.sample.states, their["states"]),
            "normalised actions, LeRobot's own": (case.sample.actions, their["chunk"]),
            "velocities": (velocities[counted], their["velocities"][counted]),
            "flow_loss": (flow_loss(case, velocities, config), their["flow_loss"]),
            "actions": (ours[f"{number}.actions"], their["actions"]),
        }
        lines += [Line(sample=case.name, quantity=name, ours=a, theirs=b) for name, (a, b) in pairs.items()]
    return lines


def supervised_steps(case: Case, config: dict[str, Any]) -> Tensor:
    """bool[1, H] the steps that LeRobot trains on; where it leaves padded ones out, they attend to other tokens."""
    padded = padded_steps(case.sample)
    return torch.ones_like(padded) if config["supervise_padding_actions"] else ~padded


def flow_loss(case: Case, velocities: Tensor, config: dict[str, Any]) -> Tensor:
    """The flow loss as LeRobot averages it under its policy's settings."""
    dims = (
        slice(None)
        if config["supervise_padding_action_dims"]
        else slice(config["output_features"]["action"]["shape"][0])
    )
    return squared_errors(case.sample, velocities)[supervised_steps(case, config)][:, dims].mean()


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--lerobot-python", required=True, help="an interpreter that has LeRobot")
    parser.add_argument("--export", type=Path, help="the checkpoint's export in LeRobot's form; made anew without it")
    parser.add_argument("--first", help="a module that LeRobot's process imports first")
    parser.add_argument("--seed", type=int, default=0, help="of the samples that are made up")
    options = parser.parse_args()
    require(options.checkpoint.is_dir(), f"{options.checkpoint}: there is no such checkpoint")
    missing = options.export is not None and not (options.export / "policy_preprocessor.json").is_file()
    rule = "must be an export in LeRobot's form: there is no policy_preprocessor.json in it"
    require(not missing, f"--export {options.export}: {rule}")
    return options


def run(options: argparse.Namespace) -> None:
    """Compare both sides; exit status 1 where they differ.

    Raises:
        ValueError: the checkpoint cannot be opened or exported, or the public code refuses the export.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        exported = options.export or work / "export"
        if options.export is None:
            export(options.checkpoint, "lerobot_eo1", exported)
        policy = open_whole(options.checkpoint)
        maker = Maker(policy.recipe, options.seed)
        cases = [
            maker.frame("robot frame", cut=0),
            maker.frame("another frame", cut=0),
            maker.frame("episode's end", cut=3),
        ]
        inputs = {f"{n}.{name}": value for n, case in enumerate(cases) for name, value in inputs_of(case).items()}
        (work / "words.json").write_text(json.dumps(words_of(policy.recipe)))
        arguments = [str(exported.resolve()), *([options.first] if options.first else [])]
        theirs = run_theirs(options.lerobot_python, "compare_lerobot_theirs.py", arguments, work, inputs)
        config = json.loads((exported / "config.json").read_text())
        ours = answer(policy, cases, config["num_denoise_steps"])
        tell(compare(cases, ours, theirs, config), (work / "versions.json").read_text())


def main() -> None:
    """Run it; what cannot be run is told in a line."""
    options = parse()
    try:
        run(options)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
