"""Tensors on disk come back bit for bit, in any cut, and nothing that was damaged is ever used."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from flagscale_vla.config.checkpoint_files import DamagedError
from flagscale_vla.mcore.pieces import Piece, Rectangle
from flagscale_vla.mcore.storage import StoredTensors, WholeWriter, write_pieces

MATRIX = torch.arange(48, dtype=torch.float32).reshape(6, 8)
VECTOR = torch.linspace(-1, 1, 11).to(torch.bfloat16)


def cut(name: str, whole: Tensor, rectangle: Rectangle, start: int, stop: int) -> tuple[Piece, Tensor]:
    block = whole[rectangle.within(Rectangle.whole(tuple(whole.shape)))].reshape(-1)
    piece = Piece(name=name, whole=tuple(whole.shape), rectangle=rectangle, start=start, stop=stop)
    return piece, block[start:stop].contiguous()


def store(folder: Path) -> Path:
    """A matrix over two tensor ranks, the second's part over two data-parallel ranks, and a whole vector."""
    left, right = Rectangle(offset=(0, 0), shape=(6, 3)), Rectangle(offset=(0, 3), shape=(6, 5))
    folder.mkdir(exist_ok=True)
    write_pieces(folder, "rank_00000", [cut("matrix", MATRIX, left, 0, 18), cut("matrix", MATRIX, right, 0, 13)])
    vector = Rectangle.whole((11,))
    write_pieces(folder, "rank_00001", [cut("matrix", MATRIX, right, 13, 30), cut("vector", VECTOR, vector, 0, 11)])
    return folder


def test_a_whole_tensor_is_put_together_of_its_pieces(tmp_path: Path) -> None:
    stored = StoredTensors.open(store(tmp_path))
    assert stored.names == ["matrix", "vector"]
    assert stored.shape("matrix") == (6, 8)
    assert stored.dtype("vector") is torch.bfloat16
    assert torch.equal(stored.read("matrix"), MATRIX)
    assert torch.equal(stored.read("vector"), VECTOR)


@pytest.mark.parametrize("rows", [(0, 6), (2, 3), (5, 1)])
@pytest.mark.parametrize("columns", [(0, 8), (0, 3), (3, 5), (2, 4)])
def test_any_block_and_any_run_of_it_can_be_read(
    tmp_path: Path, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    stored = StoredTensors.open(store(tmp_path))
    wanted = Rectangle(offset=(rows[0], columns[0]), shape=(rows[1], columns[1]))
    block = MATRIX[rows[0] : rows[0] + rows[1], columns[0] : columns[0] + columns[1]]
    assert torch.equal(stored.read_rectangle("matrix", wanted), block)
    start, stop = block.numel() // 3, block.numel()
    assert torch.equal(stored.read_run("matrix", wanted, start, stop), block.reshape(-1)[start:stop])


def test_whole_tensors_are_streamed_to_files_of_bounded_size(tmp_path: Path) -> None:
    tensors = {f"layer.{n}": torch.randn(100) for n in range(10)} | {"empty": torch.zeros(0), "scalar": torch.tensor(3)}
    with WholeWriter(tmp_path, max_bytes=1000) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    stored = StoredTensors.open(tmp_path)
    assert all(torch.equal(stored.read(name), tensor) for name, tensor in tensors.items())


def test_any_reader_of_safetensors_can_open_a_file(tmp_path: Path) -> None:
    store(tmp_path)
    with safe_open(tmp_path / "rank_00001.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["matrix[0,3:13-30]", "vector"]
        assert torch.equal(file.get_tensor("vector"), VECTOR)


def test_a_flipped_bit_anywhere_in_a_data_file_is_found_and_the_tensor_named(tmp_path: Path) -> None:
    path = store(tmp_path) / "rank_00001.safetensors"
    sound = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        place = generator.randrange(len(sound))
        damaged = bytearray(sound)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"rank_00001.* tensor (matrix|vector)"):
            StoredTensors.open(tmp_path).verify()
    path.write_bytes(sound)
    StoredTensors.open(tmp_path).verify()


@pytest.mark.parametrize("lost", [1, 20, 40, 10_000])
def test_a_truncated_file_names_the_tensor_that_is_no_longer_whole(tmp_path: Path, lost: int) -> None:
    path = store(tmp_path) / "rank_00001.safetensors"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(DamagedError, match=r"rank_00001.*tensor (vector|matrix\[0,3:13-30\]) is not whole"):
        StoredTensors.open(tmp_path).verify()


def test_a_missing_rank_is_found_before_anything_is_read(tmp_path: Path) -> None:
    (store(tmp_path) / "rank_00001.json").unlink()
    with pytest.raises(DamagedError, match="tensor matrix is not whole: 18 of 48 values"):
        StoredTensors.open(tmp_path)


def test_files_of_another_save_do_not_fit(tmp_path: Path) -> None:
    store(tmp_path)
    path = tmp_path / "rank_00000.json"
    manifest = json.loads(path.read_text())
    manifest["pieces"][1]["whole"] = [6, 9]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="tensor matrix is not whole"):
        StoredTensors.open(tmp_path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="holds no tensors"):
        StoredTensors.open(tmp_path)
