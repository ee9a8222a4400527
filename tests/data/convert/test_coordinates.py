"""Boxes and points in texts: rewritten where they stand, refused where they cannot be meant."""

from __future__ import annotations

import pytest

from flagscale_vla.config.convert_conversations import Coordinates
from flagscale_vla.data.convert.coordinates import Rescaling, has_coordinates
from flagscale_vla.data.convert.turns import RowError

GIVEN, STORED = (640, 480), (320, 240)


def rewrite(source: str, target: str, text: str) -> str:
    return Rescaling(source=Coordinates(source), target=Coordinates(target)).rewrite(text, GIVEN, STORED)


@pytest.mark.parametrize(
    ("source", "target", "numbers", "expected"),
    [
        ("absolute", "absolute", "[64, 48, 320, 480]", "[32, 24, 160, 240]"),
        ("absolute", "relative_1000", "[64, 48, 320, 480]", "[100, 100, 500, 1000]"),
        ("absolute", "relative_1", "[64, 48, 320, 480]", "[0.1, 0.1, 0.5, 1.0]"),
        ("relative_1", "absolute", "[0.1,0.1,0.5,1]", "[32, 24, 160, 240]"),
        ("relative_1000", "relative_1", "[100, 250, 500, 1000]", "[0.1, 0.25, 0.5, 1.0]"),
        ("relative_1000", "absolute", "[100, 250, 500, 1000]", "[32, 60, 160, 240]"),
        ("relative_100", "relative_1000", "[10.5, 25, 50, 100]", "[105, 250, 500, 1000]"),
    ],
)
def test_a_box_is_told_in_another_way(source: str, target: str, numbers: str, expected: str) -> None:
    text = '```json\n[\n    {{"bbox_2d": {}, "label": "cup 12, 13"}}\n]\n```'
    assert rewrite(source, target, text.format(numbers)) == text.format(expected)


def test_points_and_lists_and_xml() -> None:
    before = "{'point_2d': [64, 48]} and {\"bbox_2d\": [[0, 0, 64, 48], [64, 48, 640, 480]]}"
    after = "{'point_2d': [32, 24]} and {\"bbox_2d\": [[0, 0, 32, 24], [32, 24, 320, 240]]}"
    assert rewrite("absolute", "absolute", before) == after
    before = '<points x1="64" y1="48" x2="320.5" y2="480" alt="cups">cups</points><point x="2" y="4" alt="x">x</point>'
    after = '<points x1="32" y1="24" x2="160" y2="240" alt="cups">cups</points><point x="1" y="2" alt="x">x</point>'
    assert rewrite("absolute", "absolute", before) == after


def test_other_text_stays_as_it_is() -> None:
    for text in ("the list [1, 2, 3, 4]", '"bbox_2d" is a key', "<pointer x=1>", "a < b", "[640, 480, 0, 0]"):
        assert rewrite("absolute", "relative_1000", text) == text
    assert has_coordinates('{"bbox_2d": [1, 2, 3, 4]}')
    assert has_coordinates('<points x1="1" y1="2">')
    assert not has_coordinates("the list [1, 2, 3, 4] of points")


@pytest.mark.parametrize(
    ("source", "numbers", "reason"),
    [
        ("absolute", "[0, 0, 641, 480]", r"outside the picture: 641.*\[0, 640\]"),
        ("absolute", "[-1, 0, 64, 48]", "outside the picture: -1"),
        ("relative_1", "[10, 10, 20, 20]", r"outside the picture: 10.*\[0, 1\]"),
        ("absolute", "[64, 48, 32, 24]", "left, top, right, bottom"),
        ("absolute", "[64, 48]", "must hold 4 numbers"),
    ],
)
def test_a_box_that_cannot_be_meant_is_refused(source: str, numbers: str, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        rewrite(source, "relative_1000", f'{{"bbox_2d": {numbers}}}')
