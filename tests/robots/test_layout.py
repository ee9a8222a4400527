"""Parts of an action, found by the names of its dims."""

from __future__ import annotations

import re

import pytest

from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.layout import NAMES, Kind, Part, parts_of


def robot(*action: str) -> Embodiment:
    return Embodiment(name="r", state=("s",), action=action, cameras=("front",), fps=20)


def named(*action: str) -> list[tuple[str, Kind, tuple[str, ...], tuple[int, ...]]]:
    return [
        (part.arm, part.kind, tuple(action[dim] for dim in part.dims), part.slots) for part in parts_of(robot(*action))
    ]


def test_an_arm_without_rotation() -> None:
    assert parts_of(robot("dx", "dy", "dz", "gripper")) == (
        Part(kind=Kind.position, arm="", dims=(0, 1, 2), slots=(0, 1, 2)),
        Part(kind=Kind.gripper, arm="", dims=(3,), slots=(0,)),
    )


def test_a_single_arm() -> None:
    parts = parts_of(robot("dx", "dy", "dz", "drx", "dry", "drz", "gripper"))
    assert [part.kind for part in parts] == [Kind.position, Kind.rotation, Kind.gripper]
    assert [part.dims for part in parts] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_two_arms_come_in_the_order_of_their_dims() -> None:
    arm = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    found = named(*(f"right_{name}" for name in arm), *(f"left_{name}" for name in arm))
    assert [(side, kind) for side, kind, _, _ in found] == [
        ("right", Kind.position),
        ("right", Kind.rotation),
        ("right", Kind.gripper),
        ("left", Kind.position),
        ("left", Kind.rotation),
        ("left", Kind.gripper),
    ]
    assert found[4][2] == ("left_roll", "left_pitch", "left_yaw")


def test_six_joints_fill_six_of_seven_slots() -> None:
    assert named(*(f"j{number}" for number in range(1, 7)), "gripper") == [
        ("", Kind.gripper, ("gripper",), (0,)),
        ("", Kind.joints, ("j1", "j2", "j3", "j4", "j5", "j6"), (0, 1, 2, 3, 4, 5)),
    ]


def test_a_mobile_base_with_an_arm_in_any_order() -> None:
    assert named("base_wz", "gripper", "dz", "base_vx", "dx") == [
        ("", Kind.position, ("dx", "dz"), (0, 2)),
        ("", Kind.gripper, ("gripper",), (0,)),
        ("", Kind.base, ("base_vx", "base_wz"), (0, 2)),
    ]


def test_every_name_has_its_slot() -> None:
    for kind, slots in NAMES.items():
        assert kind.width == len(slots)
        for slot, names in enumerate(slots):
            for name in names:
                for arm in ("", "left_", "right_"):
                    assert parts_of(robot(arm + name)) == (Part(kind=kind, arm=arm[:-1], dims=(0,), slots=(slot,)),)


@pytest.mark.parametrize("name", ["wrist", "j8", "joint_0", "left_", "up_dx", "Gripper", "j1 ", "base_vz"])
def test_an_unknown_dim_is_named_with_what_would_pass(name: str) -> None:
    with pytest.raises(ValueError, match=rf"robot 'r'.*{re.escape(repr(name))}.*left_ or right_.*joint_7.*base_wz"):
        parts_of(robot("dx", name))


def test_two_dims_of_one_slot_are_refused() -> None:
    with pytest.raises(ValueError, match="'drx' and 'roll' mean the same"):
        parts_of(robot("drx", "roll"))
