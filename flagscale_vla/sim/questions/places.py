"""Questions about where things are: boxes, points, relations, counts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from flagscale_vla.sim.questions.clip import FRONT, SEEN_PIXELS, Clip, Question, RefusedError, asked
from flagscale_vla.sim.questions.wording import (
    ALIKE,
    ANSWERS,
    LISTED,
    RELATIONS,
    TEMPLATES,
    Kind,
    Relation,
    phrase,
)
from flagscale_vla.sim.worlds.lens import Lens
from flagscale_vla.sim.worlds.things import GRIPPER, Thing

Vector = NDArray[np.float64]

UP = np.array([0.0, 0.0, 1.0])
CLEAR_METERS = 0.04
"""Two things must differ at least by this for a question to ask which of them is further along."""
CLEAR_PIXELS = 2.0
"""And, where it asks for left and right, so must their middles in the picture."""
LONGEST_LIST = 4


def ask_box(clip: Clip, draws: np.random.Generator) -> Question:
    """The box around the visible pixels of a thing, or of all that have its name."""
    return _ask_place(clip, draws, Kind.box)


def ask_point(clip: Clip, draws: np.random.Generator) -> Question:
    """A visible pixel of a thing, as near as there is to the middle of all of them."""
    return _ask_place(clip, draws, Kind.point)


def _ask_place(clip: Clip, draws: np.random.Generator, kind: Kind) -> Question:
    position = int(draws.integers(clip.length))
    camera = clip.cameras[int(draws.integers(len(clip.cameras)))]
    names = sorted({thing.name for thing in clip.scene.things})
    name = names[int(draws.integers(len(names)))]
    things = [thing for thing in clip.scene.things if thing.name == name]
    masks = [clip.mask(position, camera, thing) for thing in things]
    the = f"the {name}" if len(things) == 1 else f"each {name}"
    places = [{"bbox_2d": box(mask)} if kind is Kind.box else {"point_2d": point(mask)} for mask in masks]
    answer = json.dumps([{**place, "label": name} for place in places])
    question = phrase(draws, TEMPLATES[kind], the=the)
    segments = asked(clip.image(position, camera), question, answer)
    return Question(kind=kind, position=position, segments=segments, camera=camera, things=(name,))


def box(mask: NDArray[np.bool_]) -> list[int]:
    """[left, top, right, bottom] of a mask bool[h, w]: its first and last columns and rows, both inside."""
    rows, columns = np.nonzero(mask)
    return [int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())]


def point(mask: NDArray[np.bool_]) -> list[int]:
    """[column, row] of the pixel of a mask bool[h, w] that is nearest to the middle of all."""
    places = np.argwhere(mask)
    row, column = places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))]
    return [int(column), int(row)]


def ask_relation(clip: Clip, draws: np.random.Generator) -> Question:
    """How two things lie to each other, where that is clear."""
    position = int(draws.integers(clip.length))
    seen = [thing for thing in single(clip.scene.things) if clip_sees(clip, position, thing)]
    kinds = list(Relation)
    kind = kinds[int(draws.integers(len(kinds)))]
    clear = list(clear_pairs(clip, position, seen, kind))
    if not clear:
        raise RefusedError(f"no two visible things differ clearly in {kind.value}")
    first, second, answer = clear[int(draws.integers(len(clear)))]
    question = phrase(draws, RELATIONS[kind], first=first.name, second=second.name)
    segments = asked(clip.image(position), question, answer)
    return Question(kind=Kind.relation, position=position, segments=segments, things=(first.name, second.name))


def single(things: Sequence[Thing]) -> list[Thing]:
    """Those whose name says which one is meant."""
    names = [thing.name for thing in things]
    return [thing for thing in things if names.count(thing.name) == 1]


def clip_sees(clip: Clip, position: int, thing: Thing) -> bool:
    """Whether enough of a thing is visible from the front."""
    mask = clip.masks(position, FRONT)[clip.scene.things.index(thing)]
    return bool(mask.sum() >= SEEN_PIXELS)


def clear_pairs(
    clip: Clip, position: int, things: Sequence[Thing], kind: Relation
) -> Iterator[tuple[Thing, Thing, str]]:
    """Pairs of things of which one is clearly further along, with the answer."""
    for first, second in permutations(things, 2):
        if first.overlaps(second):
            continue
        if kind is Relation.nearness:
            answer = nearer(clip, position, first, second)
        else:
            answer = compare(clip, position, first, second, kind)
        if answer:
            yield first, second, answer


def nearer(clip: Clip, position: int, first: Thing, second: Thing) -> str:
    """The name of the thing whose surface is nearer to the point between the fingers; empty where it is not clear."""
    if GRIPPER in (first.name, second.name):
        return ""
    poses = clip.poses(position)
    hand = clip.scene.hand(poses)
    distances = [clip.scene.distance(poses, thing, hand) for thing in (first, second)]
    if abs(distances[0] - distances[1]) < CLEAR_METERS:
        return ""
    return first.name if distances[0] < distances[1] else second.name


def compare(clip: Clip, position: int, first: Thing, second: Thing, kind: Relation) -> str:
    """Where the first thing is, seen from the second; empty where it is not clear.

    It is clear where the middles are `CLEAR_METERS` apart along the direction and neither lies within the other thing's
    extent along it.
    """
    lens = clip.lens(position, FRONT)
    direction = {Relation.side: lens.right, Relation.depth: lens.away, Relation.height: -UP}[kind]
    corners = [clip.scene.corners(clip.poses(position), thing) for thing in (first, second)]
    spans = [(float(low), float(high)) for low, high in ((c.min(), c.max()) for c in (k @ direction for k in corners))]
    middles = [(low + high) / 2 for low, high in spans]
    inside = [spans[1][0] <= middles[0] <= spans[1][1], spans[0][0] <= middles[1] <= spans[0][1]]
    if abs(middles[0] - middles[1]) < CLEAR_METERS or any(inside):
        return ""
    further = middles[0] > middles[1]
    if kind is Relation.side and not agrees(lens, corners, further):
        return ""
    return ANSWERS[kind][int(further)]


def agrees(lens: Lens, corners: Sequence[Vector], right: bool) -> bool:
    """Whether the picture, in perspective, also shows the first thing's middle clearly on that side."""
    middles = np.stack([(each.min(axis=0) + each.max(axis=0)) / 2 for each in corners])
    first, second = lens.project(middles)[:, 0]
    return bool(first - second >= CLEAR_PIXELS if right else second - first >= CLEAR_PIXELS)


def ask_count(clip: Clip, draws: np.random.Generator) -> Question:
    """How many of some things are visible: of those that share a name, or of a list with things that are not there."""
    position = int(draws.integers(clip.length))
    names = sorted({thing.name for thing in clip.scene.things})
    alike = sorted(set(names) - {thing.name for thing in single(clip.scene.things)})
    if alike and draws.integers(2):
        asked_for = [alike[int(draws.integers(len(alike)))]]
        question = phrase(draws, ALIKE, thing=asked_for[0])
    else:
        pool = [name for name in names if name not in alike] + list(clip.scene.others)
        asked_for = [str(name) for name in draws.permutation(pool)[: int(draws.integers(2, LONGEST_LIST + 1))]]
        question = phrase(draws, LISTED, things=", ".join(with_article(name) for name in asked_for))
    answer = str(sum(counted(clip, position, thing) for thing in clip.scene.things if thing.name in asked_for))
    segments = asked(clip.image(position), question, answer)
    return Question(kind=Kind.count, position=position, segments=segments, things=tuple(asked_for))


def counted(clip: Clip, position: int, thing: Thing) -> bool:
    """Whether a thing counts as visible from the front.

    Raises:
        RefusedError: too little of it is, to tell.
    """
    pixels = int(clip.masks(position, FRONT)[clip.scene.things.index(thing)].sum())
    if 0 < pixels < SEEN_PIXELS:
        raise RefusedError(f"a thing to be counted is hardly visible: fewer than {SEEN_PIXELS} pixels")
    return pixels > 0


def with_article(name: str) -> str:
    """`a drawer`, `an orange juice`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
