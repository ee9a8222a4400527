"""Everything that turns what a shard or a robot gives into a `Sample`, and a model's answer back: one code for both.

A recipe travels with the weights in every checkpoint, so that a policy builds its input as training did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flagscale_vla.action.store import load_action_tokenizer
from flagscale_vla.action.vocabulary import Vocabulary, place_codes, read_vocabulary
from flagscale_vla.config.checks import check
from flagscale_vla.config.data import ActionConfig, Answer, CodeIds, Normalization
from flagscale_vla.config.image import AugmentConfig, Decoder, ImageConfig, VideoConfig
from flagscale_vla.data.chunks import Chunks, Floats, clean_chunks, noise_chunk, pure_noise
from flagscale_vla.data.codes import ActionCodes, Tokenizers
from flagscale_vla.data.conversation import UNSUPERVISED, Conversation, Layout, choose_chunk, cut_after_chunk
from flagscale_vla.data.draws import Draw, stream
from flagscale_vla.data.faults import BadSampleError
from flagscale_vla.data.pack import pack
from flagscale_vla.data.pictures import Clip, Opened, PictureReader, merged_tokens
from flagscale_vla.data.places import Placer
from flagscale_vla.data.starts import chunks_with_starts
from flagscale_vla.data.tokenizer import TextEncoder, read_tokenizer
from flagscale_vla.data.validation import check_segments
from flagscale_vla.records import Action, Image, Observation, PackedBatch, RawSample, Sample, Segment, State, Text
from flagscale_vla.robots.embodiments import Embodiment, embodiment_from_json
from flagscale_vla.robots.statistics import (
    RobotStatistics,
    Scaler,
    make_scaler,
    statistics_from_json,
    statistics_to_json,
)

TOKENIZER_FILE = "tokenizer.json"
RECIPE_FILE = "recipe.json"
ACTION_TOKENIZER = "action_tokenizer"
"""Folder of a recipe that knows codes."""
RECIPE_VERSION = 1
FLOW_ALONE: dict[str, Any] = {"answer": "flow", "tokenizer": "", "layers": 0, "ids": "appended"}
"""What recipes that were written before there were codes leave out."""
UNCHANGED: dict[str, Any] = {
    name: [] for name in ("brightness", "contrast", "saturation", "sharpness", "hue", "crop", "rotate")
}
"""Changes of pictures that recipes leave out which were written before there were other ones than a shift."""
TOKENS_PER_SECOND = 2
"""Qwen2.5-VL's, for recipes that were written before there were films."""
PROMPT_KEY = "observation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A sample after the first step of `Recipe.sample`."""

    key: str
    seed: int
    epoch: int
    segments: Sequence[Segment]
    """up to the chosen chunk"""
    chosen: int | None
    """the chunk that is noised"""
    pictures: Sequence[Opened]

    @property
    def nbytes(self) -> int:
        """Of its pictures' pixels."""
        return sum(opened.clip.nbytes for opened in self.pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A sample after the second step: its pictures are there."""

    draft: Draft
    clips: Sequence[Clip]
    pixels: Tensor
    """u8[B] frames of all clips"""


class Recipe:
    """Turns a `RawSample` or an `Observation` into a `Sample`.

    Args:
        tokenizers: of text and of actions.
        embodiments: the robots, by name.
        statistics: of each robot in `embodiments` that has training data.
        image: how a picture is decoded, resized and changed.
        action: how a chunk is made and noised.
        width: padded width A of states and actions.
        system_prompt: what every conversation begins with.

    Raises:
        ConfigError: a robot has more dims than `width`, or other ones than the action tokenizer was fitted on, or codes
            do not fit where they are to go.
        ValueError: the tokenizer lacks a special token.
    """

    def __init__(
        self,
        *,
        tokenizers: Tokenizers,
        embodiments: Mapping[str, Embodiment],
        statistics: Mapping[str, RobotStatistics],
        image: ImageConfig,
        action: ActionConfig,
        width: int,
        system_prompt: str,
    ) -> None:
        self.tokenizers, self.embodiments, self.statistics = tokenizers, dict(embodiments), dict(statistics)
        self.image, self.action, self.width, self.system_prompt = image, action, width, system_prompt
        self.pictures = PictureReader(image)
        self.vocabulary: Vocabulary = read_vocabulary(tokenizers.text)
        self.codes: ActionCodes | None = None
        if tokenizers.actions is not None:
            ids, self.vocabulary = place_codes(tokenizers.text, tokenizers.actions.num_codes, action.ids)
            self.codes = ActionCodes(tokenizers.actions, ids, action.horizon, embodiments)
        for robot in embodiments.values():
            dims = max(len(robot.state), len(robot.action))
            rule = f"must be at least the {dims} dims of robot {robot.name!r}"
            check(dims <= width, "model.flow.width", width, rule, dims)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of text."""
        return self.tokenizers.text

    @cached_property
    def conversation(self) -> Conversation:
        """How samples are laid out."""
        return Conversation(
            vocabulary=self.vocabulary,
            encoder=TextEncoder(self.tokenizer),
            system_prompt=self.system_prompt,
            horizon=self.action.horizon,
            answer=self.action.answer,
        )

    @cached_property
    def placer(self) -> Placer:
        """Lays samples out."""
        return Placer(self.conversation)

    @cached_property
    def _scalers(self) -> dict[tuple[str, type], Scaler]:
        """By robot, and kind of segment; none for what was never seen in training."""
        parts = [
            (name, kind, part)
            for name, entry in self.statistics.items()
            for kind, part in ((State, entry.state), (Action, entry.action))
        ]
        kind_of_scale = self.action.normalization
        return {(name, kind): make_scaler(part, kind_of_scale) for name, kind, part in parts if part.count}

    def sample(self, raw: RawSample, *, seed: int, epoch: int, augment: bool) -> Sample:
        """A training example. Noise, flow time, denoised chunk and changes are functions of (seed, epoch, key).

        Of several chunks at most one is noised; those before it are clean context (time 0, no noise, no flow loss) and
        what follows it is cut off. A sample with exactly one chunk, at its end, always noises it, as EO-1 does. Where
        the answer is codes alone, nothing is noised or cut off, and every chunk is trained on.

        Raises:
            BadSampleError: a picture cannot be decoded, or a number, width or robot does not fit.
        """
        draft = self.begin(raw, seed=seed, epoch=epoch, augment=augment)
        return self.finish(self.see(draft, torch.empty(draft.nbytes, dtype=torch.uint8)))

    def begin(self, raw: RawSample, *, seed: int, epoch: int, augment: bool) -> Draft:
        """The first step of `sample`: numbers and pictures' headers are checked, the chunk and changes are drawn.

        A row takes each step for all of its samples at once: over two pictures a processor's caches lose all else.

        Raises:
            BadSampleError: a number, width, robot or header does not fit.
        """
        check_segments(raw, self.embodiments, self.action.horizon)
        chosen = None
        if self.action.answer is not Answer.codes:
            chosen = choose_chunk(raw.segments, lambda: stream(seed, epoch, raw.key, Draw.turn))
        segments = cut_after_chunk(raw.segments, chosen)
        pictures = self.pictures.open(raw.key, segments)
        if augment and self.image.augment.most:
            pictures = self.pictures.change(raw.key, segments, pictures, seed, epoch)
        return Draft(key=raw.key, seed=seed, epoch=epoch, segments=segments, chosen=chosen, pictures=pictures)

    def see(self, draft: Draft, room: Tensor) -> Seen:
        """The second step: pictures are decoded and changed. They go into `room`, u8[draft.nbytes].

        Raises:
            BadSampleError: one cannot be decoded.
        """
        self.pictures.read(draft.pictures, room.numpy())
        return Seen(draft=draft, clips=[opened.clip for opened in draft.pictures], pixels=room)

    def finish(self, seen: Seen) -> Sample:
        """The last step: all that the model reads.

        Raises:
            BadSampleError: a robot has no statistics, or its actions have no codes.
        """
        draft = seen.draft
        generator = stream(draft.seed, draft.epoch, draft.key, Draw.flow)
        chunks = self._chunks(draft.key, draft.segments, draft.chosen, generator)
        return self._assemble(seen, chunks, self._codes(draft.key, draft.segments))

    def prompt(self, observation: Observation, *, seed: int) -> Sample:
        """What a policy starts from: the same layout with a chunk of pure noise, drawn from `seed`, and no labels.

        It holds no codes: those that the policy finds move the chunk's placeholders back.

        Raises:
            ValueError: an unknown robot, a missing or unknown camera, or a state of another width.
        """
        robot = self._robot(observation)
        horizon = self.action.horizon
        frames = [self.pictures.fit(name, observation.images[name]) for name in robot.cameras]
        segments: list[Segment] = [
            *(Image(name=name, encoded=b"") for name in robot.cameras),
            State(values=observation.state, robot=robot.name),
            Text(text=observation.instruction, supervised=False),
            Action(
                values=np.zeros((horizon, len(robot.action)), np.float32),
                valid=np.zeros(horizon, np.bool_),
                robot=robot.name,
            ),
        ]
        chunks = pure_noise(horizon, self.width, stream(seed, 0, PROMPT_KEY, Draw.flow))
        draft = Draft(key=PROMPT_KEY, seed=seed, epoch=0, segments=segments, chosen=0, pictures=())
        clips = [Clip(frames=1, height=frame.shape[0], width=frame.shape[1], stride=1.0) for frame in frames]
        pixels = torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *(frame.ravel() for frame in frames)]))
        return self._assemble(Seen(draft=draft, clips=clips, pixels=pixels), chunks, None, supervised=False)

    def action_values(self, robot: str, normalized: Floats) -> Floats:
        """f32[H, A0] in the robot's own units, from what the model gives, f32[H, A].

        Raises:
            ValueError: a robot that was not trained on.
        """
        scaler = self._scaler("action_values", robot, Action)
        return scaler.unnormalize(normalized[..., : len(scaler.shift)])

    def state_values(self, robot: str, normalized: Floats) -> Floats:
        """f32[S0] in the robot's own units, from what the model reads, f32[A].

        Raises:
            ValueError: a robot that was not trained on.
        """
        scaler = self._scaler("state_values", robot, State)
        return scaler.unnormalize(normalized[: len(scaler.shift)])

    def length(self, raw: RawSample) -> int:
        """Tokens of the whole sample. A cut conversation has fewer.

        Raises:
            BadSampleError: as `lay_out`.
        """
        return len(self.lay_out(raw).tokens)

    def lay_out(self, raw: RawSample) -> Layout:
        """The whole sample as tokens; of its pictures only headers are read.

        Raises:
            BadSampleError: a picture's header, a number, a width or a robot does not fit.
        """
        check_segments(raw, self.embodiments, self.action.horizon)
        counts = [merged_tokens(opened.clip.grid) for opened in self.pictures.open(raw.key, raw.segments)]
        codes = self._codes(raw.key, raw.segments)
        return self.conversation.lay_out(raw.segments, counts, None, codes)

    def layout(self) -> list[object]:
        """All that the length of a sample depends on, as plain values."""
        film = self.image.video
        sides = [self.image.min_pixels, self.image.max_pixels, film.min_pixels, film.max_pixels, film.total_pixels]
        codes = [self.action.answer.value, self.codes.digest] if self.codes else []
        return [self.tokenizer.to_str(), self.system_prompt, *sides, self.action.horizon, *codes]

    def with_statistics(self, statistics: Mapping[str, RobotStatistics]) -> Recipe:
        """The same recipe with other statistics."""
        return Recipe(
            tokenizers=self.tokenizers,
            embodiments=self.embodiments,
            statistics=statistics,
            image=self.image,
            action=self.action,
            width=self.width,
            system_prompt=self.system_prompt,
        )

    def pack(self, samples: Sequence[Sample], length: int) -> PackedBatch:
        """A row of `length` tokens; see `data.pack.pack`."""
        return pack(samples, length, pad=self.vocabulary.pad, horizon=self.action.horizon, width=self.width)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `recipe.json` and, where there are codes, the action tokenizer's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "version": RECIPE_VERSION,
            "embodiments": {name: asdict(robot) for name, robot in self.embodiments.items()},
            "statistics": statistics_to_json(self.statistics),
            "image": image_to_json(self.image),
            "action": action_to_json(self.action),
            "width": self.width,
            "system_prompt": self.system_prompt,
        }
        self.tokenizer.save(str(folder / TOKENIZER_FILE))
        (folder / RECIPE_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.codes:
            self.codes.tokenizer.save(folder / ACTION_TOKENIZER)

    @staticmethod
    def load(folder: Path) -> Recipe:
        """What `save` wrote.

        Raises:
            ValueError: a file is missing or of another version.
        """
        path = folder / RECIPE_FILE
        if not path.is_file() or not (folder / TOKENIZER_FILE).is_file():
            raise ValueError(f"{folder} holds no recipe: it needs {RECIPE_FILE} and {TOKENIZER_FILE}")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != RECIPE_VERSION:
            raise ValueError(f"{path} has version {content['version']}; this code reads {RECIPE_VERSION}")
        action = action_from_json(content["action"])
        has_codes = action.answer is not Answer.flow
        return Recipe(
            tokenizers=Tokenizers(
                text=read_tokenizer(folder / TOKENIZER_FILE),
                actions=load_action_tokenizer(folder / ACTION_TOKENIZER) if has_codes else None,
            ),
            embodiments={name: embodiment_from_json(name, entry) for name, entry in content["embodiments"].items()},
            statistics=statistics_from_json(content["statistics"]),
            image=image_from_json(content["image"]),
            action=action,
            width=content["width"],
            system_prompt=content["system_prompt"],
        )

    def _robot(self, observation: Observation) -> Embodiment:
        robot = self.embodiments.get(observation.robot)
        if robot is None or robot.name not in self.statistics:
            raise ValueError(f"robot={observation.robot!r} was not trained on; known are {sorted(self.statistics)}")
        if set(observation.images) != set(robot.cameras):
            given = sorted(observation.images)
            raise ValueError(f"robot {robot.name!r} has cameras {sorted(robot.cameras)}, the observation has {given}")
        if observation.state.shape != (len(robot.state),):
            shape = observation.state.shape
            raise ValueError(f"robot {robot.name!r} has a state of {len(robot.state)} numbers, not of shape {shape}")
        if not np.isfinite(observation.state).all():
            raise ValueError(f"the state of robot {robot.name!r} holds NaN or infinity: {observation.state.tolist()}")
        for name, image in observation.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(f"image {name!r} must be u8[h, w, 3], not {image.dtype}{list(image.shape)}")
        return robot

    def _scaler(self, key: str, robot: str, kind: type) -> Scaler:
        scaler = self._scalers.get((robot, kind))
        if scaler is None:
            known = sorted(name for name, seen in self._scalers if seen is kind)
            raise BadSampleError(key, f"robot {robot!r} has no {kind.__name__.lower()} statistics; known are {known}")
        return scaler

    def _codes(self, key: str, segments: Sequence[Segment]) -> list[list[int]] | None:
        """Token ids of each chunk's codes; None where the answer has none."""
        if self.codes is None:
            return None
        return [self.codes.encode(key, action, start) for action, start in chunks_with_starts(segments)]

    def _chunks(
        self, key: str, segments: Sequence[Segment], chosen: int | None, generator: np.random.Generator
    ) -> Chunks:
        in_codes = self.action.answer is Answer.codes
        actions = [segment for segment in segments if isinstance(segment, Action) and not in_codes]
        values = [self._scaler(key, action.robot, Action).normalize(action.values) for action in actions]
        chunks = clean_chunks(values, self.action.horizon, self.width)
        if chosen is not None:
            action = actions[chosen]
            noise_chunk(chunks, chosen, action.valid, action.values.shape[1], self.action, generator)
        return chunks

    def _states(self, key: str, segments: Sequence[Segment]) -> Floats:
        states = [segment for segment in segments if isinstance(segment, State)]
        rows = np.zeros((len(states), self.width), np.float32)
        for row, state in zip(rows, states, strict=True):
            row[: len(state.values)] = self._scaler(key, state.robot, State).normalize(state.values)
        return rows

    def _assemble(self, seen: Seen, chunks: Chunks, codes: list[list[int]] | None, supervised: bool = True) -> Sample:
        draft = seen.draft
        places = self.placer.place(draft.segments, seen.clips, draft.chosen, codes)
        return Sample(
            key=draft.key,
            tokens=places.tokens,
            labels=places.labels if supervised else torch.full_like(places.labels, UNSUPERVISED),
            positions=places.positions,
            pixels=seen.pixels,
            frames=places.frames,
            grid=places.grid,
            image_slots=places.image_slots,
            actions=torch.from_numpy(chunks.actions),
            action_valid=torch.from_numpy(chunks.valid),
            noise=torch.from_numpy(chunks.noise),
            time=torch.from_numpy(chunks.time),
            action_slots=places.action_slots,
            states=torch.from_numpy(self._states(draft.key, draft.segments)),
            state_slots=places.state_slots,
        )


def action_to_json(action: ActionConfig) -> dict[str, object]:
    """Settings as plain values."""
    return {name: value.value if isinstance(value, Enum) else value for name, value in asdict(action).items()}


def action_from_json(content: Mapping[str, Any]) -> ActionConfig:
    """What `action_to_json` gave."""
    enums = {"answer": Answer, "ids": CodeIds, "normalization": Normalization}
    given: dict[str, Any] = FLOW_ALONE | dict(content)
    return ActionConfig(**given | {name: kind(given[name]) for name, kind in enums.items()})


def image_to_json(image: ImageConfig) -> dict[str, object]:
    """Settings as plain values."""
    return asdict(image) | {"decoder": image.decoder.value}


def image_from_json(content: Mapping[str, Any]) -> ImageConfig:
    """What `image_to_json` gave, of older recipes too: those decode with Pillow, and may shift pictures."""
    given = dict(content)
    shift, sizes = given.pop("shift_pixels", 0), {name: given[name] for name in ("min_pixels", "max_pixels")}
    film = sizes | {"total_pixels": 0, "tokens_per_second": TOKENS_PER_SECOND}
    return ImageConfig(
        **sizes,
        decoder=Decoder(given.get("decoder", Decoder.pillow.value)),
        augment=AugmentConfig(**given.get("augment", UNCHANGED | {"most": 1, "shift": shift})),
        video=VideoConfig(**given.get("video", film)),
    )
