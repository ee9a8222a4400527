"""Job `export_hf`: a checkpoint becomes a directory that `transformers`, EO-1's code or LeRobot load.

Tensors pass through one by one. What was written is read back and compared with the checkpoint before it gets its name.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from flagscale_vla.config.checkpoints import RECIPE
from flagscale_vla.config.checks import check
from flagscale_vla.config.data import Answer
from flagscale_vla.config.exchange import ExportDtype, ExportForm, ExportRun
from flagscale_vla.hf.checkpoint import Checkpoint
from flagscale_vla.hf.config_json import config_of
from flagscale_vla.hf.eo1 import write_eo1
from flagscale_vla.hf.forms import Row
from flagscale_vla.hf.lerobot import moved_places, write_lerobot
from flagscale_vla.hf.outputs import begin, finish, is_finished, peak_memory_bytes
from flagscale_vla.hf.processor import PROCESSORS, token_ids, write_json, write_processor
from flagscale_vla.hf.report import Moved
from flagscale_vla.hf.shards import Planned, ShardWriter, split_files, write_index
from flagscale_vla.hf.source import HEAD_FILE
from flagscale_vla.hf.table import name_table
from flagscale_vla.hf.target import resolve, target_rows
from flagscale_vla.hf.verify import verify_export

logger = logging.getLogger(__name__)

ACTION_TOKENIZER = "action_tokenizer"
"""Folder of a checkpoint's recipe, and of an export, with an action tokenizer's weights."""
HEAD = "flow_"
"""How our names of the flow head's tensors begin."""
DTYPES = {ExportDtype.bfloat16: torch.bfloat16, ExportDtype.float32: torch.float32}
OTHER_FORMS = (ExportForm.eo1, ExportForm.lerobot_eo1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One tensor of ours on its way out."""

    row: Row
    dtype: torch.dtype

    @property
    def planned(self) -> list[Planned]:
        """What is to be written."""
        shapes = zip(self.row.theirs, self.row.their_shapes, strict=True)
        return [Planned(name=name, shape=shape, dtype=self.dtype) for name, shape in shapes]

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """The checkpoint's tensor in the dtype that is written."""
        return checkpoint.read(self.row.ours, self.dtype)


def run(run: ExportRun) -> None:
    """Export a checkpoint, read everything back and compare it bit by bit.

    Raises:
        ConfigError: `checkpoint`, `form`, `robot` or `output` cannot be what they are.
        ValueError: the checkpoint is damaged, lacks what the form needs, or the disk did not keep what was written.
    """
    checkpoint, output = Checkpoint.open(Path(run.checkpoint)), Path(run.output)
    form = resolve(run.form, checkpoint.model)
    if is_finished(output, run, checkpoint.identity):
        return
    rule = "the checkpoint has no flow head: it was imported, not trained"
    check(checkpoint.has_head or form not in OTHER_FORMS, "form", form.value, rule, ExportForm.plain.value)
    check_answer(form, checkpoint)
    started = time.perf_counter()
    transfers = plan(run, form, checkpoint)
    scratch = begin(output)
    moved = write_weights(run, form, checkpoint, scratch, transfers)
    write_beside(run, form, checkpoint, scratch, backbone_dtype(transfers))
    verify_export(form, checkpoint, scratch, [(transfer.row, transfer.read) for transfer in transfers])
    planned = [tensor for transfer in transfers for tensor in transfer.planned]
    figures: dict[str, object] = {
        "form": form.value,
        "step": checkpoint.step,
        "tensors": len(planned),
        "parameters": sum(torch.Size(tensor.shape).numel() for tensor in planned),
        "verified": True,
        "flow_head": checkpoint.has_head,
        "bytes": sum(tensor.num_bytes for tensor in planned),
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    finish(scratch, output, run, checkpoint.identity | figures, moved)


def check_answer(form: ExportForm, checkpoint: Checkpoint) -> None:
    """Refuse to hand a model that answers in codes to programs that know none.

    Raises:
        ConfigError: naming the form that would pass.
    """
    # A recipe that was written before there were codes does not say.
    recipe = {"action": {}} if checkpoint.recipe is None else checkpoint.recipe
    answer = recipe["action"].get("answer", Answer.flow.value)
    rule = f"knows no codes, and the checkpoint was trained with action.answer={answer}"
    check(answer == Answer.flow.value or form not in OTHER_FORMS, "form", form.value, rule, ExportForm.plain.value)


def plan(run: ExportRun, form: ExportForm, checkpoint: Checkpoint) -> list[Transfer]:
    """Every tensor of ours under the form's names, with the dtype it is written in. The flow head keeps its own."""
    places = moved_places(checkpoint.tokenizer) if form is ExportForm.lerobot_eo1 else ()
    rows = target_rows(form, checkpoint.model, places)
    kept = [row for row in rows if checkpoint.has_head or not row.ours.startswith(HEAD)]
    asked, stored = DTYPES.get(run.dtype), checkpoint.tensors.dtype
    return [
        Transfer(row=row, dtype=stored(row.ours) if asked is None or row.ours.startswith(HEAD) else asked)
        for row in kept
    ]


def backbone_dtype(transfers: list[Transfer]) -> str:
    """What the word embedding is written in, as torch names it."""
    embedding = next(t for t in transfers if t.row.ours == "language.embedding.word_embeddings.weight")
    return str(embedding.dtype).removeprefix("torch.")


def write_weights(
    run: ExportRun, form: ExportForm, checkpoint: Checkpoint, folder: Path, transfers: list[Transfer]
) -> list[Moved]:
    """Write safetensors files and their index; the flow head goes beside them where the form has no place for it.

    Returns:
        what was written, in the model's order.

    Raises:
        ValueError: naming a tensor that holds a value that is not finite.
    """
    moved = []
    first = len(name_table(checkpoint.model)) if form not in OTHER_FORMS else len(transfers)
    inside, apart = transfers[:first], transfers[first:]
    # LeRobot's loader reads one file and no index.
    most = run.max_shard_bytes if form is not ExportForm.lerobot_eo1 else sum(map(num_bytes, inside))
    files = split_files([transfer.planned for transfer in inside], most)
    write_index(folder, files)
    if apart:
        files |= {HEAD_FILE: [tensor for transfer in apart for tensor in transfer.planned]}
        logger.info("%s: the flow head, which %s has no place for, goes to %s", run.output, form.value, HEAD_FILE)
    with ShardWriter(folder, files) as writer:
        for transfer in tqdm([*inside, *apart], desc="write", unit="tensor", disable=None):
            ours = transfer.read(checkpoint)
            moved.append(Moved.of(transfer.row, ours))
            for name, tensor in zip(transfer.row.theirs, transfer.row.form.theirs(ours), strict=True):
                writer.write(name, tensor)
    return moved


def num_bytes(transfer: Transfer) -> int:
    """Bytes of what is written."""
    return sum(tensor.num_bytes for tensor in transfer.planned)


def write_beside(run: ExportRun, form: ExportForm, checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Write all that stands beside the weights."""
    if form is ExportForm.eo1:
        write_eo1(run, checkpoint, folder, dtype)
    elif form is ExportForm.lerobot_eo1:
        write_lerobot(run, checkpoint, folder, dtype)
    else:
        write_json(folder / "config.json", config_of(checkpoint.model, token_ids(checkpoint), dtype))
        write_processor(checkpoint, folder, checkpoint.tokenizer, PROCESSORS[checkpoint.model.vision.kind])
    if checkpoint.recipe is not None:
        shutil.copyfile(checkpoint.folder / RECIPE / "recipe.json", folder / "recipe.json")
    if (checkpoint.folder / RECIPE / ACTION_TOKENIZER).is_dir():
        shutil.copytree(checkpoint.folder / RECIPE / ACTION_TOKENIZER, folder / ACTION_TOKENIZER)
