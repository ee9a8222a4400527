"""What the comparisons with public code share: our answers, the other process, and the table of differences.

Our side runs all samples as one packed row, the public code each sample in a row of its own. What each side reads and
answers travels in safetensors files, because they need different versions of `transformers`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from compare_samples import Case
from safetensors.torch import load_file, save_file
from torch import Tensor

from flagscale_vla.config.parallel import Device, Dtype, Fp8, MatmulPrecision, PlatformConfig
from flagscale_vla.model.sampling import denoise
from flagscale_vla.policy.policy import Policy
from flagscale_vla.records import Sample
from flagscale_vla.train.objective import objective

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4
ACTIONS_TOLERANCE = 1e-3
"""Of actions: the differences of all Euler steps add up in them."""
PADDING = 5
"""Tokens of padding behind the samples in our row."""
INPUTS, ANSWERS = "inputs.safetensors", "answers.safetensors"

Named = dict[str, Tensor]
"""`NUMBER.QUANTITY` to its values, for each sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table."""

    sample: str
    quantity: str
    ours: Tensor
    theirs: Tensor

    @property
    def difference(self) -> float:
        """Largest absolute difference; infinite where the shapes differ."""
        if self.ours.shape != self.theirs.shape:
            return float("inf")
        return (self.ours.double() - self.theirs.double()).abs().max().item()

    @property
    def is_same(self) -> bool:
        """Whether the difference is within the bounds; NaN is not."""
        return self.difference < (ACTIONS_TOLERANCE if self.quantity == "actions" else TOLERANCE)

    def __str__(self) -> str:
        one = self.ours.numel() == 1
        values = (
            [f"{float(side):.7g}" for side in (self.ours, self.theirs)] if one else [str(tuple(self.ours.shape)), ""]
        )
        return f"{self.sample:18}{self.quantity:34}{values[0]:>16}{values[1]:>16}{self.difference:12.2e}"


def open_whole(checkpoint: Path) -> Policy:
    """A checkpoint's whole model and recipe, on the CPU in full float32.

    Raises:
        ConfigError: there is no whole checkpoint.
        ValueError: its tensors are not those of the model it names.
    """
    platform = PlatformConfig(
        device=Device.cpu, dtype=Dtype.float32, fp8=Fp8.none, matmul=MatmulPrecision.highest, threads=0
    )
    return Policy.open(checkpoint, platform=platform, denoise_steps=1, temperature=0.0)


@torch.no_grad()
def answer(policy: Policy, cases: Sequence[Case], steps: int) -> Named:
    """Our answers of one packed row: velocities f32[C, H, A], losses, and actions where a sample has one chunk.

    `flow_sum` and `text_sum` are what training adds up for this row, divided by their counts.
    """
    samples = [case.sample for case in cases]
    batch = policy.recipe.pack(samples, sum(len(sample.tokens) for sample in samples) + PADDING)
    predictions = policy.model(batch)
    sums = objective(predictions, batch)
    found: Named = {"flow_sum": sums.flow / sums.num_action_values, "text_sum": sums.ce / sums.num_labels}
    velocities = predictions.velocities.split([len(sample.actions) for sample in samples])
    losses = predictions.token_losses[: batch.num_labels].split([num_labels(sample) for sample in samples])
    for number, (sample, velocity, loss) in enumerate(zip(samples, velocities, losses, strict=True)):
        found[f"{number}.text_loss"] = loss.mean()
        if len(sample.actions):
            found[f"{number}.velocities"] = velocity
        if len(sample.actions) == 1:
            prompt = policy.recipe.pack([sample], len(sample.tokens))
            found[f"{number}.actions"] = denoise(policy.model, prompt, steps)
    return found


def num_labels(sample: Sample) -> int:
    """Supervised tokens."""
    return int((sample.labels >= 0).sum())


def squared_errors(sample: Sample, velocities: Tensor) -> Tensor:
    """f32[C, H, A] of a sample's velocities against noise - action."""
    return (velocities - (sample.noise - sample.actions)).square()


def padded_steps(sample: Sample) -> Tensor:
    """bool[C, H], the steps of noised chunks that are past the episode's end."""
    return ~sample.action_valid.any(-1) & (sample.time > 0)[:, None]


def run_theirs(python: str, script: str, arguments: Sequence[str], folder: Path, inputs: Named) -> Named:
    """Hand `inputs` to the public code in a process of its own, and read what it answers.

    Args:
        python: the interpreter that can run it.
        script: the file beside this one that it runs.
        arguments: for the script, which gets `folder` first.
        folder: an empty one, for both hand-overs.

    Raises:
        ValueError: the process fails; with its last lines.
    """
    save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, folder / INPUTS)
    command = [python, str(ROOT / "tools" / script), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    return load_file(folder / ANSWERS)


def export(checkpoint: Path, form: str, output: Path) -> None:
    """Run the export job.

    Raises:
        ValueError: it fails; with its last lines.
    """
    settings = [f"checkpoint={checkpoint.resolve()}", f"form={form}", f"output={output}", "dtype=stored"]
    command = [sys.executable, "run.py", "--config-name", "export_hf", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")


def require(ok: bool, message: str) -> None:
    """Leave with a message where something that the user names is not there."""
    if not ok:
        sys.exit(message)


def tell(lines: Sequence[Line], their_versions: str) -> None:
    """Print the table and, as JSON, the largest difference of each quantity; leave with 1 where one is too large."""
    print(f"{'sample':18}{'quantity':34}{'ours':>16}{'theirs':>16}{'difference':>12}")
    for line in lines:
        print(line)
    largest: dict[str, float] = {}
    for line in lines:
        largest[line.quantity] = max(largest.get(line.quantity, 0.0), line.difference)
    ours = {name: version(name) for name in ("torch", "transformers", "megatron-core")}
    print(json.dumps({"largest": largest, "ours": ours, "theirs": json.loads(their_versions)}))
    bad = [f"{line.sample}: {line.quantity} {line.difference:.2e}" for line in lines if not line.is_same]
    if bad:
        sys.exit(f"differs: {'; '.join(bad)}")
