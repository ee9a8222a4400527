"""Rows of an episode out of the parquet files of a LeRobot dataset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flagscale_vla.data.lerobot.info import Feature

OPEN_FILES = 4
"""Kept open with what was last read of them: in v3 the next episode often lies in the same row group."""
Numbers = NDArray[Any]


class DataFile:
    """A parquet file with the rows of one or more episodes, each in one run.

    Raises:
        ValueError: it is missing or damaged, or an episode's rows lie apart.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: dict[str, tuple[tuple[int, ...], pa.ChunkedArray]] = {}
        try:
            self.file = pq.ParquetFile(path)
            groups = self.file.metadata
            sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
            indices = self.file.read(columns=["episode_index"]).column(0).to_numpy()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"data file cannot be read: {path}: {error}") from error
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.runs = _runs(np.asarray(indices).reshape(-1))

    def rows(self, episode: int, length: int) -> tuple[int, int]:
        """The first row of an episode and the one after its last.

        Raises:
            ValueError: there are not `length` of them.
        """
        runs = self.runs.get(episode, [])
        if len(runs) != 1 or runs[0][1] - runs[0][0] != length:
            rows = sum(stop - start for start, stop in runs)
            raise ValueError(
                f"data file and meta disagree: {self.path} has {rows} rows of episode {episode} in {len(runs)} runs, "
                f"meta says {length} in one"
            )
        return runs[0]

    def column(self, key: str, start: int, stop: int) -> pa.Array:
        """Rows [start, stop) of a column.

        Raises:
            ValueError: it is missing or damaged, or a row is null.
        """
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        groups = tuple(range(first, int(np.searchsorted(self.starts, stop, "left"))))
        if key not in self._held or self._held[key][0] != groups:
            try:
                self._held[key] = (groups, self.file.read_row_groups(list(groups), columns=[key]).column(0))
            except (pa.ArrowException, OSError, IndexError) as error:
                raise ValueError(f"column cannot be read: {key!r} of {self.path}: {error}") from error
        rows = self._held[key][1].slice(start - int(self.starts[first]), stop - start).combine_chunks()
        if rows.null_count:
            raise ValueError(f"column has nulls: {key!r} of {self.path}")
        return rows


def _runs(indices: NDArray[np.int64]) -> dict[int, list[tuple[int, int]]]:
    """By episode, where its rows lie."""
    edges = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(indices)]
    runs: dict[int, list[tuple[int, int]]] = {}
    for start, stop in pairwise(edges):
        if stop > start:
            runs.setdefault(int(indices[start]), []).append((start, stop))
    return runs


@lru_cache(maxsize=OPEN_FILES)
def open_file(path: Path) -> DataFile:
    """A file that may still be open from the last episode."""
    return DataFile(path)


def numbers(rows: pa.Array, feature: Feature) -> Numbers:
    """Rows of a numeric column as [n, width], in the file's dtype.

    Raises:
        ValueError: a row has another number of values than the feature's shape.
    """
    count = len(rows)
    while not pa.types.is_primitive(rows.type):
        if isinstance(rows, pa.ExtensionArray):
            rows = rows.storage
        elif pa.types.is_nested(rows.type):
            rows = rows.flatten()
        else:
            raise ValueError(f"column is no numbers: {feature.key!r} holds {rows.type}")
    values = rows.to_numpy(zero_copy_only=False)
    if len(values) != count * feature.width:
        raise ValueError(
            f"column has another shape: {feature.key!r} has {len(values) / count:g} values a row, "
            f"meta/info.json says {list(feature.shape)}"
        )
    return np.asarray(values).reshape(count, feature.width)


def picture_bytes(rows: pa.Array, root: Path, wanted: Sequence[int], key: str) -> list[bytes]:
    """The encoded pictures of some rows of an image column.

    Raises:
        ValueError: a row holds none, and its path leads to no file.
    """
    found = []
    for place in wanted:
        entry = rows[place].as_py()
        content, path = (entry.get("bytes"), entry.get("path")) if isinstance(entry, dict) else (entry, None)
        if content is None and path and (root / path).is_file():
            content = (root / path).read_bytes()
        if not isinstance(content, bytes):
            raise ValueError(f"picture is missing: row {place} of {key!r}")
        found.append(content)
    return found
