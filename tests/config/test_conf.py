"""Every config in `conf/` composes and holds, and every rule refuses what breaks it with a value that would pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.config.model import ModelConfig
from flagscale_vla.config.runs import TrainRun, Verb
from flagscale_vla.config.schema import SCHEMAS, settings_of
from tests.settings import composed, load

ROOT = Path(__file__).parents[2]
NO_JOBS = ("base", "view_data")
"""What every run shares, and a page that writes nothing."""
JOBS = sorted(file.stem for file in (ROOT / "conf").glob("*.yaml") if file.stem not in NO_JOBS)
MODELS = sorted(file.stem for file in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", JOBS)
def test_every_config_composes_and_holds(name: str) -> None:
    assert load(name).output == f"runs/{name}" or name == "record_demo"


@pytest.mark.parametrize("model", MODELS)
def test_every_size_fits_the_training_config(model: str) -> None:
    run = load("train_3b_action", f"model={model}", "verb=dryrun")
    assert isinstance(run, TrainRun)
    assert isinstance(run.model, ModelConfig)
    assert run.model.name == model


BAD_TRAINING = """
output=''
steps=0
global_packs=0
global_packs=3 parallel.data=2
global_packs=3 parallel.pipeline=2 parallel.virtual=2
seed=-1
model.vision.layers=0
model.vision.hidden=-192
model.vision.intermediate=0
model.vision.heads=0
model.vision.heads=5
model.vision.heads=64
model.vision.window_pixels=0
model.vision.window_pixels=50
model.vision.full_attention_layers=[1,4]
model.vision.full_attention_layers=[-1]
model.vision.image_pixels=448
model.vision.window_pixels=56 model.vision.kind=qwen2_vl model.vision.full_attention_layers=[]
model.vision.full_attention_layers=[1] model.vision.kind=qwen2_vl model.vision.window_pixels=0
model.vision.intermediate=200 model.vision.kind=qwen2_vl NO_WINDOWS
model.vision.image_pixels=0 model.vision.kind=internvit NO_WINDOWS
model.vision.image_pixels=100 model.vision.kind=internvit NO_WINDOWS
model.vision.kind=internvit model.vision.image_pixels=448 NO_WINDOWS
model.language.max_positions=0
model.language.layers=0
model.language.hidden=0
model.language.intermediate=0
model.language.heads=0
model.language.heads=5
model.language.heads=64
model.language.kv_heads=0
model.language.kv_heads=4
model.language.vocab=0
model.language.vocab=511 parallel.tensor=2
model.language.rope_theta=0
model.language.mrope_sections=[4,6]
model.language.mrope_sections=[4,6,7]
model.language.mrope_sections=[0,8,8]
model.language.norm_eps=0
model.flow.width=0
model.flow.output_layers=0
model.flow.min_period=0
model.flow.max_period=0
model.flow.max_period=0.001
data.shards=''
data.epochs=-1
data.era=0
data.pool=0
data.tokenizer=''
data.image.min_pixels=783
data.image.max_pixels=783
data.image.augment.most=-1
data.image.augment.shift=-1
data.image.augment.brightness=[1.2,0.8]
data.image.augment.contrast=[1.0]
data.image.augment.saturation=[-0.5,1.5]
data.image.augment.hue=[-0.6,0.1]
data.image.augment.crop=[0.0,1.0]
data.image.augment.rotate=[-3.0,190.0]
data.image.video.min_pixels=783
data.image.video.max_pixels=783
data.image.video.total_pixels=783
data.image.video.tokens_per_second=-1
data.image.video.tokens_per_second=25
data.pack_length=0
data.pack_length=24 data.image.max_pixels=12544 action.horizon=8
data.pack_length=2561 parallel.context=2
data.pack_length=2562 parallel.tensor=2 parallel.context=2 parallel.sequence=true
data.workers=-1
data.max_bad_share=1.5
data.max_bad_shard_share=-0.1
action.horizon=0
action.layers=-1
action.layers=1
action.tokenizer=runs/tokenizer
action.tokenizer='' action.answer=codes
optim.loss.text=0 action.answer=codes action.tokenizer=x
model.language.vocab=576 parallel.tensor=2 action.answer=both action.tokenizer=x
action.beta_alpha=0
action.beta_beta=-1
action.time_scale=0
action.time_offset=-0.1
action.time_offset=0.1
parallel.tensor=0
parallel.tensor=3
parallel.tensor=2 model.vision.intermediate=513
parallel.tensor=2 model.language.intermediate=513
parallel.tensor=4
parallel.tensor=3 model.language.intermediate=513 model.vision.intermediate=513
parallel.tensor=6 model.language.intermediate=516 model.vision.intermediate=516
parallel.pipeline=0
parallel.pipeline=3
parallel.pipeline=3 parallel.virtual=2
parallel.virtual=0
parallel.virtual=2
parallel.virtual=3 parallel.pipeline=2
parallel.first_layers=-1
parallel.first_layers=1
parallel.first_layers=4 parallel.pipeline=2
parallel.first_layers=2 parallel.pipeline=4
parallel.first_layers=1 parallel.pipeline=2 parallel.virtual=2
parallel.overlap_param_gather=true parallel.overlap_grad_reduce=false
parallel.language_recompute.layers=0
parallel.language_recompute.layers=3 parallel.language_recompute.granularity=full
parallel.language_recompute.layers=2 parallel.language_recompute.granularity=full parallel.pipeline=4
parallel.vision_recompute.layers=3 parallel.vision_recompute.granularity=full
parallel.vision_recompute.modules=[mlp] parallel.vision_recompute.granularity=selective
parallel.vision_recompute.modules=[] parallel.vision_recompute.granularity=selective
parallel.context=0
parallel.data=0
parallel.hosts=0
parallel.hosts=2
parallel.sequence=true
optim.vision.lr=0
optim.merger.lr=0
optim.language.lr=-1
optim.head.lr=0
optim.head.frozen=true optim.vision.frozen=true optim.merger.frozen=true optim.language.frozen=true
optim.warmup_steps=-1
optim.final_share=2
optim.weight_decay=-0.1
optim.beta1=1
optim.beta2=-0.1
optim.eps=0
optim.clip=0
optim.loss.text=-1
optim.loss.flow=-1
optim.loss.flow=0 optim.loss.text=0
platform.threads=-1
platform.fp8=hybrid platform.device=cpu
platform.fp8=hybrid platform.dtype=float32
platform.fp8=hybrid model.language.intermediate=520
platform.fp8=hybrid parallel.tensor=2 model.language.intermediate=1040
checkpoint.every=0
checkpoint.keep=0
report.every=0
report.samples=-1
"""

BAD_RECORDING = """
output=''
episodes=0
heldout_episodes=-1
image_pixels=-1
horizon=0
noise=-0.1
max_steps=-1
questions=-1
question_steps=0
processes=0
seed=4294967296
"""

BAD_EVALUATION = """
output=''
checkpoint=''
shards=''
tasks=[]
episodes=0
max_steps=-1
execute_steps=0
denoise_steps=0
temperature=-1
image_pixels=0
confidence=1
videos=-1
videos=11
processes=0
seed=-1
platform.threads=-1
platform.fp8=hybrid
"""

BAD_REPLAY = """
output=''
tokenizer=''
episodes=0
horizon=0
linger=-1
max_steps=-1
confidence=0
processes=0
seed=-1
"""

BAD_TOKENIZER = """
output=''
data.shards=''
data.max_chunks=0
data.max_heldout_chunks=0
data.max_bad_share=2
data.max_bad_shard_share=2
horizon=0
robots_left_out=[panda,panda]
robots_left_out=[panda] kind=beast
codec.position.points=0
codec.rotation.degree=16
codec.gripper.codes=1
codec.joints.layers=0
codec.base.latent=0
codec.lr=0
codec.decay=1
codec.layer_dropout=2
fast.scale=0
fast.vocab=0
fast.max_chunks=0
beast.points=0
beast.degree=5
beast.gripper_degree=-1
beast.ridge=-1
beast.bins=1
binning.bins=1
curves.fast_scales=[4,0]
curves.beast_points=[0]
fit.batch=0
fit.start_chunks=0
parallel.tensor=2
parallel.pipeline=2
parallel.context=2
parallel.data=3
parallel.data=2 kind=fast
threads=-1
checkpoint.every=0
checkpoint.keep=0
report.every=0
report.overlays=-1
seed=-1
"""

NO_WINDOWS = "model.vision.window_pixels=0 model.vision.full_attention_layers=[]"

BAD_AGILEX = """
output=''
processes=0
samples_per_shard=0
heldout_share=2
max_refused_share=-1
image_pixels=-1
jpeg_quality=0
annotations=[]
source=''
robot=''
fps=0
horizon=0
tail=30
tail=-1
frame_interval=0
action_interval=0
action_interval=4
static_tolerance=-1
gripper_scale=0
gripper_offset=[0.1]
tokenizer=x
tokenizer='' jsonl=true
"""

BAD_CONVERT_LEROBOT = """
output=''
source=''
processes=0
samples_per_shard=0
heldout_share=2
max_refused_share=-0.5
image_pixels=-1
jpeg_quality=101
stride=0
horizon=0
subtask_share=1.5
episodes=[1,1]
camera_keys=[a,b,a]
effector_indices=[3]
"""

BAD_EXPORT_LEROBOT = """
output=''
data.shards=''
data.cache.folder=''
splits=[]
splits=[train,test]
splits=[train,train]
video.crf=52
video.crf=64 video.codec=av1
video.gop=0
frames_per_file=0
max_refused_share=2
processes=0
"""

BAD_STATISTICS = """
output=''
data.shards=''
processes=0
data.cache.folder=''
data.cache.max_bytes=0
"""
CASES = [
    (name, line.replace("NO_WINDOWS", NO_WINDOWS))
    for name, lines in (
        ("train_tiny_action", BAD_TRAINING),
        ("record_demo", BAD_RECORDING),
        ("eval_demo", BAD_EVALUATION),
        ("tokenizer_omnisat", BAD_TOKENIZER),
        ("replay_demo", BAD_REPLAY),
        ("convert_agilex", BAD_AGILEX),
        ("convert_lerobot", BAD_CONVERT_LEROBOT),
        ("export_lerobot", BAD_EXPORT_LEROBOT),
        ("statistics", BAD_STATISTICS),
    )
    for line in lines.strip().splitlines()
]


@pytest.mark.parametrize(("name", "line"), CASES)
def test_a_rule_names_key_value_and_what_would_pass(name: str, line: str) -> None:
    """The first override of a line is the one to be refused; the value that the message offers passes.

    It may show that another key does not fit it: 4 heads and then the rotary sections of a head.
    """
    overrides = line.split()
    key, value = overrides[0].split("=")
    message = re.fullmatch(r"(\S+?)=(.*?): (.+)\. This would pass: (\S+?)=(.+)", refusal(name, overrides))
    assert message, refusal(name, overrides)
    assert message[1] == message[4] == key
    assert same(message[2], value)
    assert not refusal(name, [*overrides[1:], f"{key}={message[5]}"]).startswith(f"{key}=")


def same(shown: str, given: str) -> bool:
    """Whether a message shows the value that was given."""
    return shown.replace(" ", "").lower() == given.lower() or shown == str(float(given))


def refusal(name: str, overrides: list[str]) -> str:
    """What is refused in a config, or nothing."""
    try:
        settings_of(OmegaConf.merge(composed(name), OmegaConf.from_dotlist(overrides)))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stepz=3", "stepz"),
        ("parallel.tensr=2", "tensr"),
        ("steps=many", "many"),
        ("parallel.sequence=maybe", "maybe"),
        ("platform.device=tpu", "tpu"),
        ("model.language.mrope_sections=[a,b,c]", "a"),
        ("model=13b", "13b"),
    ],
)
def test_typos_and_wrong_types_are_refused_at_compose(override: str, words: str) -> None:
    with pytest.raises(ConfigCompositionException) as refused:
        load("train_tiny_action", override)
    causes = f"{refused.value} {refused.value.__cause__}"
    assert words in causes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+optim.warmup=9"], "optim.warmup: there is no such setting. Did you mean optim.warmup_steps?"),
        (["+frobnicate=1"], "frobnicate: there is no such setting. There are: output, verb, model,"),
        (["+data.image.blur.radius=1"], "data.image.blur: there is no such setting. There are: data.image.min_pixels,"),
        (["data=qwen"], "data.tokenizer=???: has no value yet. Give it one on the command line: data.tokenizer=VALUE"),
    ],
)
def test_new_keys_and_open_values_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load("train_tiny_action", *overrides)


def test_layouts_on_one_host_hold() -> None:
    run = load("train_tiny_action", "parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true")
    assert isinstance(run, TrainRun)
    assert run.parallel.world_size == 4
    assert run.num_microbatches == 1


def test_the_command_line_translates_the_verb() -> None:
    sys.path.insert(0, str(ROOT))
    import run as program

    translated = [program.VERBS.get(word, word) for word in ("action=dryrun", "action=flow", "action.horizon=4")]
    assert translated == ["verb=dryrun", "action=flow", "action.horizon=4"]
    job = load("train_3b_action", translated[0])
    assert isinstance(job, TrainRun)
    assert job.verb is Verb.dryrun
    assert set(program.JOBS) == set(SCHEMAS.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train_tiny_action", "parallel.tensor=4"], "ConfigError: parallel.tensor=4: must divide"),
        (["train_3b_action"], "ConfigError: parallel.hosts=16: this is one host. The run needs 128 processes"),
    ],
)
def test_the_program_ends_in_a_message_not_a_trace(tmp_path: Path, arguments: list[str], words: str) -> None:
    name, *overrides = arguments
    command = [sys.executable, "run.py", "--config-name", name, f"output={tmp_path / 'out'}", *overrides]
    env = {key: value for key, value in os.environ.items() if key not in {"RANK", "FLAGSCALE_VLA_TRACE"}}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(words)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
