"""Compare an export in EO-1's form, run by EO-1's own public code, with the checkpoint that it was made of.

    python tools/compare_eo1.py CHECKPOINT --eo1 DIR [--eo1-python PYTHON] [--export DIR] [--seed N]

CHECKPOINT is a checkpoint of ours or a run's output folder, DIR a checkout of EO-1's repository, and PYTHON an
interpreter with `torch` and `transformers==4.56.0` (no GPU, no torchvision and no flash-attn). Without `--export` the
export is made first, in a temporary folder. Both sides get the same pixels, states, actions, noise, flow times and
tokens, in float32; ours as one packed row, theirs one sample at a time. Compared are rotary positions, velocities,
text loss, flow loss, and the actions after all Euler steps. Anything above 1e-4 fails, actions above 1e-3.

EO-1 computes the sines of flow time in float32, at angles of up to 1571, and so do we. `--exact-time` runs EO-1's code
with its sines in float64, which shows what that rounding alone makes: more than 1e-4.

The two average the flow loss differently, so it is compared twice. EO-1 takes the mean over all values, those past an
episode's end and in clean chunks counting as zero, padded dims in full. We divide by the number of supervised values.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from compare_samples import Case, Maker
from compare_sides import (
    Line,
    Named,
    answer,
    export,
    num_labels,
    open_whole,
    padded_steps,
    require,
    run_theirs,
    squared_errors,
    tell,
)
from torch import Tensor

from flagscale_vla.config.model import VisionKind
from flagscale_vla.model.pixels import cut_patches, normalize
from flagscale_vla.records import Sample

MODELING = Path("eo", "model", "modeling_eo1.py")


def inputs_of(sample: Sample) -> Named:
    """What EO-1's forward takes; its labels are not shifted, and nothing is given for what the sample lacks."""
    labels = torch.full_like(sample.labels, -100)
    labels[1:] = sample.labels[:-1]
    found = {"tokens": sample.tokens, "labels": labels}
    if len(sample.grid):
        found |= {
            "pixel_values": normalize(cut_patches(sample.pixels, sample.frames, sample.grid), VisionKind.qwen2_5_vl),
            "image_grid_thw": sample.grid,
        }
    if len(sample.actions):
        found |= {"states": sample.states, "actions": sample.actions, "action_is_pad": padded_steps(sample)}
        found |= {"noise": sample.noise, "time": sample.time}
    if len(sample.actions) == 1:
        # EO-1 denoises the chunk that ends a prompt but for the closing token.
        found["prompt_length"] = sample.action_slots.max() + 2
    return found


def flow_loss(sample: Sample, velocities: Tensor) -> Tensor:
    """The flow loss as EO-1 averages it."""
    counts = (sample.time > 0)[:, None] & ~padded_steps(sample)
    return (squared_errors(sample, velocities) * counts[..., None]).mean()


def compare(cases: Sequence[Case], ours: Named, theirs: Named) -> list[Line]:
    """The table."""
    lines = []
    for number, case in enumerate(cases):
        ours[f"{number}.positions"] = case.sample.positions
        if len(case.sample.actions):
            ours[f"{number}.flow_loss"] = flow_loss(case.sample, ours[f"{number}.velocities"])
        for quantity in ("positions", "velocities", "flow_loss", "text_loss", "actions"):
            name = f"{number}.{quantity}"
            if name in ours:
                lines.append(Line(sample=case.name, quantity=quantity, ours=ours[name], theirs=theirs[name]))
    return lines + sums(cases, ours, theirs)


def sums(cases: Sequence[Case], ours: Named, theirs: Named) -> list[Line]:
    """Both losses as our training averages them, over all samples."""
    acting = [(number, case.sample) for number, case in enumerate(cases) if len(case.sample.actions)]
    errors = [squared_errors(sample, theirs[f"{number}.velocities"])[sample.action_valid] for number, sample in acting]
    text = [theirs[f"{number}.text_loss"] * num_labels(case.sample) for number, case in enumerate(cases)]
    labels = sum(num_labels(case.sample) for case in cases)
    return [
        Line(
            sample="all", quantity="flow loss, averaged our way", ours=ours["flow_sum"], theirs=torch.cat(errors).mean()
        ),
        Line(sample="all", quantity="text loss, averaged our way", ours=ours["text_sum"], theirs=sum(text) / labels),
    ]


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--eo1", type=Path, required=True, help="a checkout of github.com/EO-Robotics/EO1")
    parser.add_argument("--eo1-python", default="python", help="an interpreter that can run it")
    parser.add_argument("--export", type=Path, help="the checkpoint's export in EO-1's form; made anew without it")
    parser.add_argument("--exact-time", action="store_true", help="EO-1's sines of flow time in float64")
    parser.add_argument("--seed", type=int, default=0, help="of the samples that are made up")
    options = parser.parse_args()
    found = (options.eo1 / MODELING).is_file()
    require(found, f"--eo1 {options.eo1}: must be a checkout of EO-1's repository: there is no {MODELING} in it")
    require(options.checkpoint.is_dir(), f"{options.checkpoint}: there is no such checkpoint")
    missing = options.export is not None and not (options.export / "config.json").is_file()
    require(not missing, f"--export {options.export}: must be an export in EO-1's form: there is no config.json in it")
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
            export(options.checkpoint, "eo1", exported)
        policy = open_whole(options.checkpoint)
        maker = Maker(policy.recipe, options.seed)
        cases = [maker.frame("robot frame", cut=0), maker.frame("episode's end", cut=3), maker.text("picture, text")]
        cases.append(maker.two_chunks("two chunks"))
        inputs = {
            f"{n}.{name}": value for n, case in enumerate(cases) for name, value in inputs_of(case.sample).items()
        }
        time_dtype = "float64" if options.exact_time else "float32"
        arguments = [str(exported.resolve()), str(options.eo1.resolve()), time_dtype]
        theirs = run_theirs(options.eo1_python, "compare_eo1_theirs.py", arguments, work, inputs)
        steps = json.loads((exported / "config.json").read_text())["num_denoise_steps"]
        tell(compare(cases, answer(policy, cases, steps), theirs), (work / "versions.json").read_text())


def main() -> None:
    """Run it; what cannot be run is told in a line."""
    options = parse()
    try:
        run(options)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
