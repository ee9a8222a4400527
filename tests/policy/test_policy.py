"""A checkpoint, saved under any layout, answers in the robot's own units, alone or with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.parallel import Device, Dtype, Fp8, MatmulPrecision, PlatformConfig
from flagscale_vla.policy.client import PolicyClient, open_policy
from flagscale_vla.records import Observation
from flagscale_vla.train.pretrain import run
from tests.helpers import run_ranks
from tests.samples import SAWYER, picture
from tests.train.settings import small_run
from tests.train.weights import write_small_shards

PLATFORM = PlatformConfig(device=Device.cpu, dtype=Dtype.auto, fp8=Fp8.none, matmul=MatmulPrecision.highest, threads=1)


def observation(seed: int, instruction: str = "open the door", **changes: object) -> Observation:
    generator = np.random.default_rng(seed)
    images = {camera: picture(generator, 112, 112) for camera in SAWYER.cameras}
    state = generator.standard_normal(len(SAWYER.state)).astype(np.float32)
    fields = {"images": images, "state": state, "instruction": instruction, "robot": SAWYER.name, **changes}
    return Observation(**fields)


def train(rank: int, output: str, shards: str, *overrides: str) -> None:
    run(small_run(Path(output), f"data.shards={shards}", "steps=2", *overrides))


def answers(rank: int, checkpoint: str) -> dict[str, np.ndarray]:
    """Chunks for three observations together, each alone, and the first again from other noise."""
    policy = open_policy(Path(checkpoint), platform=PLATFORM, denoise_steps=4, temperature=0.0)
    seen = [observation(0), observation(1, "push the drawer shut, all the way"), observation(2)]
    together = policy.infer(seen, seed=7)
    alone = [policy.infer([one], seed=7 + place)[0] for place, one in enumerate(seen)]
    assert {chunk.key for chunk in together} == {together[0].key}
    assert Path(together[0].key).parent.parent == Path(checkpoint)
    return {
        "together": np.stack([chunk.values for chunk in together]),
        "alone": np.stack([chunk.values for chunk in alone]),
        "again": policy.infer(seen, seed=7)[0].values,
        "other noise": policy.infer(seen, seed=8)[0].values,
        "normalized": policy.normalize_action(SAWYER.name, together[0].values),
    }


def refusals(rank: int, checkpoint: str) -> list[str]:
    """What is said of observations that cannot be answered."""
    policy = open_policy(Path(checkpoint), platform=PLATFORM, denoise_steps=1, temperature=0.0)
    bad = [
        observation(0, robot="no_such_robot"),
        observation(0, images={}),
        observation(0, state=np.zeros(9, np.float32)),
    ]
    return [refusal(policy, one) for one in bad]


def refusal(policy: PolicyClient, one: Observation) -> str:
    with pytest.raises(ValueError, match="robot") as raised:
        policy.infer([one], seed=0)
    return str(raised.value)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run saved under tensor parallelism 2."""
    shards = write_small_shards(tmp_path_factory.mktemp("shards"))
    folder = str(tmp_path_factory.mktemp("run"))
    run_ranks(train, 2, folder, shards.removeprefix("data.shards="), "parallel.tensor=2")
    return folder


@pytest.mark.ranks
def test_a_policy_answers_alike_alone_and_with_others(output: str) -> None:
    chunks = run_ranks(answers, 1, output)[0]
    assert chunks["together"].shape == (3, 8, len(SAWYER.action))
    assert chunks["together"].dtype == np.float32
    np.testing.assert_allclose(chunks["together"], chunks["alone"], atol=1e-5)
    np.testing.assert_array_equal(chunks["again"], chunks["together"][0])
    assert np.abs(chunks["other noise"] - chunks["again"]).max() > 1e-3
    assert np.isfinite(chunks["normalized"]).all()


@pytest.mark.ranks
def test_what_cannot_be_answered_is_told(output: str) -> None:
    robot, cameras, state = run_ranks(refusals, 1, output)[0]
    assert "no_such_robot" in robot
    assert "cameras" in cameras
    assert "state" in state


def test_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        open_policy(tmp_path, platform=PLATFORM, denoise_steps=1, temperature=0.0)
