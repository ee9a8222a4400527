"""The comparisons with public code, as far as they go without it: made-up samples, averages, messages."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.samples import make_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    """Imports a tool by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


def leave(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a tool says when it leaves over its arguments."""
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    with pytest.raises(SystemExit) as left:
        module.parse()
    assert left.value.code != 0
    return str(left.value.code)


def test_a_missing_checkout_is_named(tool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = leave(tool("compare_eo1"), monkeypatch, str(tmp_path), "--eo1", str(tmp_path / "EO1"))
    assert f"{tmp_path / 'EO1'}: must be a checkout" in said
    assert "modeling_eo1.py" in said


def test_eo1_wants_a_checkpoint_and_a_whole_export(tool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tool("compare_eo1")
    (tmp_path / module.MODELING).parent.mkdir(parents=True)
    (tmp_path / module.MODELING).touch()
    eo1 = ["--eo1", str(tmp_path)]
    assert "no such checkpoint" in leave(module, monkeypatch, str(tmp_path / "none"), *eo1)
    assert "no config.json" in leave(module, monkeypatch, str(tmp_path), *eo1, "--export", str(tmp_path))


def test_lerobot_wants_an_interpreter_and_a_whole_export(
    tool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tool("compare_lerobot")
    leave(module, monkeypatch, str(tmp_path))
    assert "--lerobot-python" in capsys.readouterr().err
    python = ["--lerobot-python", sys.executable]
    assert "no such checkpoint" in leave(module, monkeypatch, str(tmp_path / "none"), *python)
    said = leave(module, monkeypatch, str(tmp_path), *python, "--export", str(tmp_path))
    assert "no policy_preprocessor.json" in said


@pytest.mark.parametrize(
    ("script", "arguments", "lacking"),
    [
        ("compare_eo1_theirs.py", ["export", "nowhere", "float32"], "No module named 'eo'"),
        ("compare_lerobot_theirs.py", ["export", "no_such_module"], "No module named 'no_such_module'"),
    ],
)
def test_the_other_process_says_what_it_lacks(
    tool, script: str, arguments: list[str], lacking: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=lacking):
        tool("compare_sides").run_theirs(sys.executable, script, arguments, tmp_path, {"0.x": torch.zeros(1)})


def test_samples_are_noised_as_asked_for(tool) -> None:
    maker = tool("compare_samples").Maker(make_recipe(), seed=0)
    frame, text, two = maker.frame("frame", cut=3), maker.text("text"), maker.two_chunks("two")
    assert frame.sample.action_valid.any(-1).sum() == make_recipe().action.horizon - 3
    assert len(frame.pictures) == len(frame.sample.grid) == 2
    assert len(text.sample.actions) == 0
    assert (text.sample.labels >= 0).any()
    assert (two.sample.time > 0).tolist() == [False, True]


def test_eo1_gets_labels_unshifted_and_a_prompt_up_to_the_closing_token(tool) -> None:
    recipe = make_recipe()
    sample = tool("compare_samples").Maker(recipe, seed=0).frame("frame", cut=0).sample
    inputs = tool("compare_eo1").inputs_of(sample)
    supervised = inputs["labels"] >= 0
    assert torch.equal(inputs["labels"][supervised], sample.tokens[supervised])
    assert inputs["labels"].tolist()[1:] == sample.labels.tolist()[:-1]
    assert sample.tokens[inputs["prompt_length"] - 1] == recipe.vocabulary.action_end


def test_losses_are_averaged_as_each_side_does(tool) -> None:
    case = tool("compare_samples").Maker(make_recipe(), seed=0).frame("frame", cut=3)
    target = case.sample.noise - case.sample.actions
    wrong = target.clone()
    wrong[0, 0, 0] += 2.0  # a step and dim of its own
    wrong[0, 1, -1] += 2.0  # a padded dim
    wrong[0, -1, 0] += 2.0  # a step past the episode's end
    assert tool("compare_eo1").flow_loss(case.sample, wrong) == pytest.approx(8 / target.numel())
    steps, dims = target.shape[1], 4
    settings = {"output_features": {"action": {"shape": [dims]}}}
    flow_loss = tool("compare_lerobot").flow_loss
    everything = settings | {"supervise_padding_actions": True, "supervise_padding_action_dims": True}
    assert flow_loss(case, wrong, everything) == pytest.approx(12 / target.numel())
    own = settings | {"supervise_padding_actions": False, "supervise_padding_action_dims": False}
    assert flow_loss(case, wrong, own) == pytest.approx(4 / ((steps - 3) * dims))


def test_what_differs_is_told_and_fails(tool, capsys: pytest.CaptureFixture[str]) -> None:
    sides = tool("compare_sides")

    def line(quantity: str, theirs: torch.Tensor):
        return sides.Line(sample="frame", quantity=quantity, ours=torch.zeros(2), theirs=theirs)

    sides.tell([line("same", torch.zeros(2)), line("actions", torch.full((2,), 5e-4))], "{}")
    assert '"same": 0.0' in capsys.readouterr().out
    for theirs in (torch.full((2,), 5e-4), torch.zeros(3), torch.full((2,), torch.nan)):
        with pytest.raises(SystemExit, match="differs: frame: velocities"):
            sides.tell([line("velocities", theirs)], "{}")


def test_float64_sines_are_taken_of_exact_angles(tool) -> None:
    def sines(time: torch.Tensor, width: int) -> torch.Tensor:
        return torch.sin(1571.0 * torch.linspace(0.0, 1.0, width) * time[:, None])

    time = torch.tensor([0.7], dtype=torch.float32)
    exact = sines(time.double(), 5).float()
    found = tool("compare_eo1_theirs").computed_in(torch.float64, sines)(time, 5)
    assert torch.get_default_dtype() is torch.float32
    assert found.dtype is torch.float32
    assert torch.equal(found, exact)
    assert not torch.equal(sines(time, 5), exact)
