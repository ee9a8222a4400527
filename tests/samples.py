"""Small seeded samples and shards for any test: robot frames, text, and text about pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from flagscale_vla.action.binning import Binning
from flagscale_vla.action.fast import Fast, fit_fast
from flagscale_vla.action.fitter import Fitter
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.tokenizer import ActionTokenizer
from flagscale_vla.action.units import Units
from flagscale_vla.action.vocabulary import added_tokens
from flagscale_vla.config.data import ActionConfig, Answer, CodeIds, Normalization
from flagscale_vla.config.image import AugmentConfig, Decoder, ImageConfig, VideoConfig
from flagscale_vla.config.mixture import OrderConfig, TooLong, Weigh
from flagscale_vla.data.codes import Tokenizers
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.images import Pixels
from flagscale_vla.data.index import Index
from flagscale_vla.data.pictures import Clip
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.data.shards import ShardWriter
from flagscale_vla.data.sources import Source
from flagscale_vla.data.store import LocalStore
from flagscale_vla.data.tokenizer import fit_tokenizer
from flagscale_vla.model.pixels import cut_patches
from flagscale_vla.records import Action, Image, PackedBatch, RawSample, Segment, State, Text
from flagscale_vla.robots.embodiments import Embodiment, save_embodiments
from flagscale_vla.robots.statistics import RobotStatistics, Statistics
from tests.action.codec import small

SAWYER = Embodiment(
    name="sawyer",
    state=("x", "y", "z", "gripper"),
    action=("dx", "dy", "dz", "gripper"),
    cameras=("front", "wrist"),
    fps=20,
)
PANDA = Embodiment(
    name="panda",
    state=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    action=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    cameras=("front",),
    fps=10,
)
SENTENCE = "open the door then close a red drawer and push this button to the left of that small blue window please"
WORDS = tuple(SENTENCE.split())
STORED_STEPS = 16


def carried(clips: Sequence[Sequence[Pixels]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, frames and grid of pictures and films, as a row carries them."""
    sides = [frames[0].shape for frames in clips]
    made = [Clip(frames=len(f), height=h, width=w, stride=1.0) for f, (h, w, _) in zip(clips, sides, strict=True)]
    pixels = np.concatenate([np.empty(0, np.uint8), *(frame.ravel() for frames in clips for frame in frames)])
    frames = torch.tensor([clip.frames for clip in made], dtype=torch.int64)
    return torch.from_numpy(pixels), frames, torch.tensor([clip.grid for clip in made]).reshape(-1, 3)


def patches_of(clips: Sequence[Sequence[Pixels]]) -> Tensor:
    """Patches u8[P, 1176] of pictures and films."""
    return cut_patches(*carried(clips))


def sentence(generator: np.random.Generator, num_words: int) -> str:
    """Words in random order."""
    return " ".join(generator.choice(WORDS, num_words))


def picture(generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A smooth random picture u8[height, width, 3], which JPEG keeps well."""
    coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC))


def encode_picture(pixels: NDArray[np.uint8], kind: str = "JPEG") -> bytes:
    """JPEG or PNG bytes."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def robot_sample(seed: int, robot: Embodiment = SAWYER, side: int = 112) -> RawSample:
    """One frame: a picture from each camera, the state, an instruction, and a chunk whose last steps may be invalid."""
    generator = np.random.default_rng([seed, 1])
    values = generator.normal(size=(STORED_STEPS, len(robot.action))).astype(np.float32)
    valid = np.arange(STORED_STEPS) < generator.integers(2, STORED_STEPS + 1)
    segments: list[Segment] = [
        *(Image(name=name, encoded=encode_picture(picture(generator, side, side))) for name in robot.cameras),
        State(values=generator.normal(size=len(robot.state)).astype(np.float32), robot=robot.name),
        Text(text=sentence(generator, int(generator.integers(3, 9))), supervised=False),
        Action(values=values, valid=valid, robot=robot.name),
    ]
    return RawSample(key=f"robot-{seed:05d}", segments=tuple(segments))


def text_sample(seed: int, num_words: int) -> RawSample:
    """A question and an answer of `num_words` in all, at least 2; one word is about one token."""
    generator = np.random.default_rng([seed, 2])
    asked = num_words // 2
    segments = (
        Text(text=sentence(generator, asked), supervised=False),
        Text(text=sentence(generator, num_words - asked), supervised=True),
    )
    return RawSample(key=f"text-{seed:05d}", segments=segments)


def picture_sample(seed: int, num_words: int, sides: tuple[int, int] = (84, 112)) -> RawSample:
    """A picture of `sides` (height, width), a question, an answer."""
    generator = np.random.default_rng([seed, 3])
    text = text_sample(seed, num_words)
    image = Image(name="picture", encoded=encode_picture(picture(generator, *sides)))
    return RawSample(key=f"picture-{seed:05d}", segments=(image, *text.segments))


def interleaved_sample(seed: int, num_chunks: int = 2, robot: Embodiment = SAWYER) -> RawSample:
    """Several frames of one episode in one conversation, and a question about it at the end."""
    frames = [segment for number in range(num_chunks) for segment in robot_sample(1000 * seed + number, robot).segments]
    named = [
        Image(name=f"{segment.name}-{place}", encoded=segment.encoded) if isinstance(segment, Image) else segment
        for place, segment in enumerate(frames)
    ]
    question = (Text(text="is it done?", supervised=False), Text(text="yes", supervised=True))
    return RawSample(key=f"interleaved-{seed:05d}", segments=(*named, *question))


def mixed_samples(seed: int, count: int, shortest: int = 40, longest: int = 600) -> list[RawSample]:
    """A seeded mixture: robot frames, text-only and text-image samples of about `shortest` to `longest` tokens."""
    generator = np.random.default_rng([seed, 4])
    kinds = generator.integers(3, size=count)
    words = generator.integers(max(2, shortest - 30), longest - 60, count)
    return [
        [robot_sample(seed * count + number), text_sample(number, num_words), picture_sample(number, num_words)][kind]
        for number, (kind, num_words) in enumerate(zip(kinds.tolist(), words.tolist(), strict=True))
    ]


def unit_statistics(width: int) -> Statistics:
    """Statistics that leave values as they are."""
    zeros, ones = (0.0,) * width, (1.0,) * width
    low = (-1.0,) * width
    return Statistics(count=100, mean=zeros, std=ones, min=low, max=ones, q01=low, q99=ones)


def image_config(shift_pixels: int = 0) -> ImageConfig:
    """Pictures of at most 112x112 pixels: 16 merged tokens."""
    return ImageConfig(
        min_pixels=784,
        max_pixels=12544,
        decoder=Decoder.pillow,
        augment=augment_config(most=1, shift=shift_pixels),
        video=VideoConfig(min_pixels=784, max_pixels=6272, total_pixels=0, tokens_per_second=2),
    )


def augment_config(*, most: int = 3, shift: int = 0, **ranges: list[float]) -> AugmentConfig:
    """Changes of pictures; those that are not named are off."""
    names = ("brightness", "contrast", "saturation", "sharpness", "hue", "crop", "rotate")
    return AugmentConfig(most=most, shift=shift, **{name: ranges.get(name, []) for name in names})


def action_config(
    horizon: int = 8, *, supervise_padding: bool = False, answer: Answer = Answer.flow, tokenizer: str = ""
) -> ActionConfig:
    """EO-1's flow settings."""
    return ActionConfig(
        horizon=horizon,
        answer=answer,
        tokenizer=tokenizer,
        layers=0,
        ids=CodeIds.appended,
        normalization=Normalization.mean_std,
        beta_alpha=1.5,
        beta_beta=1.0,
        time_scale=0.999,
        time_offset=0.001,
        supervise_padding=supervise_padding,
    )


def units() -> Units:
    """Both robots, in ranges of -1 to 1."""
    robots = {robot.name: robot for robot in (SAWYER, PANDA)}
    statistics = {name: unit_statistics(len(robot.action)) for name, robot in robots.items()}
    return Units(robots, {name: RobotStatistics(state=part, action=part) for name, part in statistics.items()})


def binning(bins: int = 16) -> Binning:
    """Codes of a fixed number, another one for each robot."""
    return Binning(bins=bins, units=units())


def chunks() -> dict[str, NDArray[np.float32]]:
    """Chunks of 8 steps f32[40, 8, A0] of both robots."""
    raws = [robot_sample(seed, robot) for seed in range(40) for robot in (SAWYER, PANDA)]
    actions = [segment for raw in raws for segment in raw.segments if isinstance(segment, Action)]
    return {
        robot.name: np.stack([action.values[:8] for action in actions if action.robot == robot.name])
        for robot in (SAWYER, PANDA)
    }


def fast() -> Fast:
    """Codes whose number differs from chunk to chunk."""
    return fit_fast(chunks(), units(), scale=2.0, vocab_size=300)


@cache
def omnisat() -> OmniSat:
    """Codes in layers, fitted for a few steps: what they decode to is far from what was encoded."""
    values = {robot: torch.from_numpy(part) for robot, part in chunks().items()}
    valid = {robot: torch.ones(part.shape[:2], dtype=torch.bool) for robot, part in values.items()}
    known = units()
    fitter = Fitter(small(steps=3), known.embodiments, known.statistics, 8, 0, lambda _: None)
    fitter.begin(values, valid)
    for step in range(3):
        fitter.step(values, valid, step)
    return fitter.tokenizer()


def make_recipe(
    horizon: int = 8,
    width: int = 8,
    vocab: int = 512,
    shift_pixels: int = 0,
    *,
    supervise_padding: bool = False,
    answer: Answer = Answer.flow,
    codec: ActionTokenizer | None = None,
) -> Recipe:
    """A recipe for the samples of this file, with a tokenizer fitted on their words; `codec` is for codes."""
    generator = np.random.default_rng(0)
    texts = [sentence(generator, 30) for _ in range(50)]
    robots = (SAWYER, PANDA)
    action = action_config(
        horizon, supervise_padding=supervise_padding, answer=answer, tokenizer="codec" if codec else ""
    )
    return Recipe(
        tokenizers=Tokenizers(
            text=fit_tokenizer(texts, vocab, added_tokens(codec.num_codes if codec else 0, action.ids)), actions=codec
        ),
        embodiments={robot.name: robot for robot in robots},
        statistics={
            robot.name: RobotStatistics(
                state=unit_statistics(len(robot.state)), action=unit_statistics(len(robot.action))
            )
            for robot in robots
        },
        image=image_config(shift_pixels),
        action=action,
        width=width,
        system_prompt="You are a helpful physical assistant.",
    )


def made_up_index(lengths: Sequence[int], name: str = "train-000000.tar") -> Index:
    """An index of samples that are nowhere, each of one segment."""
    numbers = np.arange(len(lengths) + 1)
    return Index(
        store=LocalStore(Path("nowhere")),
        shards=(name,),
        digests=("",),
        keys=tuple(f"text-{number:05d}" for number in numbers[:-1]),
        robots=("",) * len(lengths),
        shard=np.zeros(len(lengths), np.int32),
        start=numbers[:-1] * 1024,
        size=np.full(len(lengths), 1024),
        lengths=np.asarray(lengths, np.int64),
        segments=np.asarray(lengths, np.int32),
        segment_starts=numbers,
        cuts=np.ones(len(lengths), np.bool_),
        faults=(),
        gatherers={},
    )


def order_config(**changes: object) -> OrderConfig:
    """The order of a folder of shards alone, or what `changes` makes of it."""
    alone: dict[str, object] = {
        "shards": "" if "mixture" in changes else "unused",
        "mixture": {},
        "weigh": Weigh.samples,
        "stages": [],
        "epochs": 0,
        "era": 65536,
        "pool": 64,
        "too_long": TooLong.refuse,
    }
    return OrderConfig(**alone | changes)  # type: ignore[arg-type]


def make_feed(
    indices: Index | dict[str, Index],
    recipe: Recipe,
    pack_length: int,
    *,
    seed: int = 0,
    augment: bool = False,
    order: OrderConfig | None = None,
) -> Feed:
    """What a run would read of one index, or of several by name."""
    named = {"": indices} if isinstance(indices, Index) else indices
    return Feed(
        sources=tuple(Source(name=name, index=index) for name, index in sorted(named.items())),
        recipe=recipe,
        order=order or order_config(),
        pack_length=pack_length,
        seed=seed,
        augment=augment,
    )


def make_batch(recipe: Recipe, raws: Iterable[RawSample], length: int, *, seed: int = 0, epoch: int = 0) -> PackedBatch:
    """All of `raws` in one row."""
    return recipe.pack([recipe.sample(raw, seed=seed, epoch=epoch, augment=False) for raw in raws], length)


def write_shards(
    folder: Path, raws: Iterable[RawSample], split: str = "train", *, max_bytes: int = 200_000
) -> list[Path]:
    """Write samples and `embodiments.json` into `folder`; the shards' paths."""
    with ShardWriter(folder, split, max_bytes=max_bytes) as writer:
        for raw in raws:
            writer.write(raw.key, raw.segments, {"task": "synthetic"})
    save_embodiments(folder, (SAWYER, PANDA))
    return sorted(folder.glob(f"{split}-*.tar"))
