"""A sample as the model reads it: tokens, what is supervised, positions, pictures, chunks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.data.conversation import UNSUPERVISED
from flagscale_vla.data.pictures import first_frames
from flagscale_vla.data.recipe import Recipe
from flagscale_vla.records import Action, RawSample, Sample, State, Text
from flagscale_vla.view.episodes import robot_of

Pixels = NDArray[np.uint8]


def describe(raw: RawSample, sample: Sample, recipe: Recipe) -> dict[str, object]:
    """Everything about a sample that the page shows, as JSON's values."""
    robot = recipe.embodiments.get(robot_of(raw))
    return {
        "key": raw.key,
        "robot": robot.name if robot else "",
        "state_names": list(robot.state) if robot else [],
        "action_names": list(robot.action) if robot else [],
        "num_tokens": sample.tokens.numel(),
        "num_supervised": num_learnt(sample),
        "segments": [_segment(segment) for segment in raw.segments],
        "runs": list(token_runs(sample, recipe)),
        "grid": sample.grid.tolist(),
        "pictures": int(sample.grid[:, 0].sum()),
        "states": sample.states.tolist(),
        "chunks": list(_chunks(sample)),
    }


def num_learnt(sample: Sample) -> int:
    """Tokens that are learnt by cross entropy."""
    return int((sample.labels != UNSUPERVISED).sum())


def _segment(segment: object) -> dict[str, object]:
    """A segment as the shard has it, in short."""
    match segment:
        case Text(text=text, supervised=supervised):
            return {"kind": "answer" if supervised else "text", "text": text}
        case State(values=values):
            return {"kind": "state", "values": values.tolist()}
        case Action(values=values, valid=valid):
            return {"kind": "action", "values": values.tolist(), "valid": valid.tolist()}
    return {"kind": type(segment).__name__.lower()}


def token_runs(sample: Sample, recipe: Recipe) -> Iterator[dict[str, object]]:
    """Tokens in order; neighbours that are the same, as a picture's placeholders are, become one entry.

    `learnt` says that the model is trained to predict these tokens, `positions` holds those of the first and last of
    the run along (time, height, width).
    """
    tokens = sample.tokens.tolist()
    learnt = [False, *(sample.labels[:-1] != UNSUPERVISED).tolist()]
    positions = sample.positions.T.tolist()
    for (token, wanted), run in groupby(range(len(tokens)), key=lambda place: (tokens[place], learnt[place])):
        places = list(run)
        yield {
            "start": places[0],
            "count": len(places),
            "id": token,
            "text": recipe.tokenizer.decode([token], skip_special_tokens=False),
            "special": token in recipe.tokenizer.get_added_tokens_decoder(),
            "learnt": wanted,
            "positions": [positions[places[0]], positions[places[-1]]],
        }


def _chunks(sample: Sample) -> Iterator[dict[str, object]]:
    """Each chunk of actions as the model gets it: clean, noised, and where the flow loss is taken."""
    for actions, noise, time, valid in zip(sample.actions, sample.noise, sample.time, sample.action_valid, strict=True):
        noised = time * noise + (1 - time) * actions
        yield {
            "time": float(time),
            "actions": actions.tolist(),
            "noised": noised.tolist(),
            "valid": valid.tolist(),
            "trained": bool(valid.any()),
        }


def seen_pictures(sample: Sample) -> list[Pixels]:
    """Pictures u8[h, w, 3] as the model gets them, a video's one for each pair of frames."""
    return list(first_frames(sample.pixels.numpy(), sample.frames.tolist(), sample.grid.tolist()))
