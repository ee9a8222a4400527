"""Rows of files: found where they lie, taken by EO-1's strategies, and named where they cannot be read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flagscale_vla.config.checks import ConfigError
from flagscale_vla.data.convert.rows import find_rows, parse_sampling, read_rows

ROWS = [{"id": number, "text": "schön"} for number in range(4)]


def test_lines_are_found_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text(f"{lines[0]}\n\n{lines[1]}\n  \n{lines[2]}\n{lines[3]}", encoding="utf-8")
    places = find_rows(path)
    assert [place.number for place in places] == [1, 3, 5, 6]
    assert [entry.content for entry in read_rows(path, places[::-1])] == ROWS[::-1]


def test_a_list_has_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    assert [entry.content for entry in read_rows(path, find_rows(path))] == ROWS


def test_a_bad_row_says_where_and_why(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": 0}\n{"id": \n[1]\n{"id": "\xff"}\n' + b"[" * 5000 + b"\n")
    entries = list(read_rows(path, find_rows(path)))
    assert entries[0].content == {"id": 0}
    assert [entry.place for entry in entries] == [f"{path}:{number}" for number in range(1, 6)]
    kinds = [entry.reason.partition(": ")[0] for entry in entries]
    assert kinds == ["", "not JSON", "not an object", "not JSON", "not JSON"]


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.json", "{}"), ("a.json", "[1"), ("b.jsonl", None)])
def test_a_file_that_holds_no_rows_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        find_rows(tmp_path / name)


def test_strategies_take_what_eo1_takes() -> None:
    def take(text: str, total: int = 10) -> list[int]:
        return parse_sampling("sampling", text).choose(total, seed=0)

    assert take("all") == list(range(10))
    assert take("first:3") == [0, 1, 2]
    assert take("first:25%") == [0, 1, 2]
    assert take("end:3") == [7, 8, 9]
    assert take("end:99") == list(range(10))
    assert take("end:0") == []
    drawn = take("random:30%")
    assert len(drawn) == 3
    assert drawn == sorted(set(drawn))
    assert drawn == take("random:3")
    assert parse_sampling("sampling", "random:3").choose(10, seed=1) != drawn
    assert take("random:100%") == list(range(10))


@pytest.mark.parametrize("percent", [0.5, 1, 7, 29, 33.3, 58, 99.9])
def test_a_percentage_is_rounded_up_as_eo1_does(percent: float) -> None:
    counts = [parse_sampling("sampling", f"first:{percent}%").count(total) for total in (1, 10, 999, 1000)]
    assert counts == [math.ceil(round(percent * total, 6) / 100) for total in (1, 10, 999, 1000)]


@pytest.mark.parametrize(
    "text", ["", "half", "first", "first:", "first:x", "first:1.5", "random:-1", "random:nan%", "all:3"]
)
def test_an_unknown_strategy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be all, first:K.*This would pass: sampling=random:10%"):
        parse_sampling("sampling", text)
