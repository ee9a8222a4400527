"""Which dims of an action belong together: position, rotation, gripper or joints of each arm, and the base."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flagscale_vla.robots.embodiments import Embodiment


class Kind(Enum):
    """What a group of dims measures."""

    position = "position"
    """x, y and z, or steps along them"""
    rotation = "rotation"
    """a rotation vector about x, y and z, radians"""
    gripper = "gripper"
    joints = "joints"
    """up to seven joint angles or speeds, from the base outwards"""
    base = "base"
    """speeds of a mobile base: forwards, sideways, and turning"""

    @property
    def width(self) -> int:
        """Slots in a group of this kind."""
        return len(NAMES[self])


NAMES: dict[Kind, tuple[tuple[str, ...], ...]] = {
    Kind.position: (("dx", "x"), ("dy", "y"), ("dz", "z")),
    Kind.rotation: (("drx", "rx", "droll", "roll"), ("dry", "ry", "dpitch", "pitch"), ("drz", "rz", "dyaw", "yaw")),
    Kind.gripper: (("gripper",),),
    Kind.joints: tuple((f"joint_{number}", f"j{number}") for number in range(1, 8)),
    Kind.base: (("base_vx",), ("base_vy",), ("base_wz",)),
}
"""The names that each slot of a kind goes by; `left_` or `right_` may stand before them."""

PLACES = {name: (kind, slot) for kind, slots in NAMES.items() for slot, names in enumerate(slots) for name in names}
ARMS = ("left", "right")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of one arm of a robot."""

    kind: Kind
    arm: str
    """`left`, `right`, or empty for a single arm"""
    dims: tuple[int, ...]
    """indices in the action vector, in the order of `slots`"""
    slots: tuple[int, ...]
    """ascending; a slot of the kind that no dim fills is to be masked"""


def parts_of(embodiment: Embodiment) -> tuple[Part, ...]:
    """The parts of a robot's action: arms in the order of their first dims, then kinds in the order of `Kind`.

    Every dim is in exactly one part.

    Raises:
        ValueError: no rule takes a dim's name, or two dims of an arm claim one slot.
    """
    found: dict[str, dict[Kind, dict[int, int]]] = {}
    for dim, name in enumerate(embodiment.action):
        arm, kind, slot = _place(embodiment.name, name)
        filled = found.setdefault(arm, {}).setdefault(kind, {})
        if slot in filled:
            twin = embodiment.action[filled[slot]]
            raise ValueError(f"robot {embodiment.name!r}: action dims {twin!r} and {name!r} mean the same; drop one")
        filled[slot] = dim
    return tuple(
        Part(kind=kind, arm=arm, dims=tuple(kinds[kind][slot] for slot in slots), slots=slots)
        for arm, kinds in found.items()
        for kind in Kind
        if kind in kinds
        for slots in [tuple(sorted(kinds[kind]))]
    )


def _place(robot: str, name: str) -> tuple[str, Kind, int]:
    """Arm, kind and slot of an action dim."""
    first, _, rest = name.partition("_")
    arm, plain = (first, rest) if first in ARMS else ("", name)
    if plain not in PLACES:
        passing = ", ".join(name for slots in NAMES.values() for names in slots for name in names)
        raise ValueError(
            f"robot {robot!r}: no rule takes the action dim {name!r}. These would pass, also with left_ or right_ "
            f"before them: {passing}"
        )
    return arm, *PLACES[plain]
