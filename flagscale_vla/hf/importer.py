"""Job `import_hf`: a Hugging Face directory becomes a checkpoint that loads under any layout.

Tensors pass through one by one, so that a model of any size needs the memory of a few of them.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from flagscale_vla.action.vocabulary import ACTION_TOKENS, add_special_tokens, read_vocabulary
from flagscale_vla.config.checkpoint_files import FORMAT, Metadata, file_digests, write_metadata
from flagscale_vla.config.checkpoints import CONFIG, RECIPE, WEIGHTS, checkpoint_folder
from flagscale_vla.config.checks import check
from flagscale_vla.config.exchange import ImportRun
from flagscale_vla.config.model import ModelConfig
from flagscale_vla.config.provenance import git_hash, package_versions
from flagscale_vla.config.stored import flat_settings
from flagscale_vla.hf.checkpoint import HF
from flagscale_vla.hf.configs import model_of
from flagscale_vla.hf.forms import Row
from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.outputs import begin, finish, is_finished, peak_memory_bytes
from flagscale_vla.hf.report import Moved
from flagscale_vla.hf.source import BACKBONE, FileTensor, list_tensors, read_json, same_bits, source_config
from flagscale_vla.hf.table import OUTPUT_LAYER, match_names, name_table
from flagscale_vla.hf.target import EMBEDDING
from flagscale_vla.mcore.storage import StoredTensors, WholeWriter

logger = logging.getLogger(__name__)

HF_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What travels along; code never does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One tensor of ours and the stored ones that it is made of."""

    row: Row
    parts: tuple[FileTensor, ...]

    def make(self) -> Tensor:
        """Our tensor, contiguous."""
        return self.row.form.ours([part.read() for part in self.parts]).contiguous()


def run(run: ImportRun) -> None:
    """Import a directory, read everything back and compare it bit by bit.

    Raises:
        ConfigError: `source` or `output` cannot be what they are.
        ValueError: the directory is not whole or not a model that this program has; names tensor and file.
    """
    source, output = Path(run.source), Path(run.output)
    rule = "must be a folder with config.json and safetensors files"
    check(source.is_dir(), "source", source, rule, "data/Qwen2.5-VL-3B-Instruct")
    origin = {"source": str(source.resolve())}
    if is_finished(output, run, origin):
        return
    started = time.perf_counter()
    model = model_of(source_config(source), run.flow, source.resolve().name)
    matches = match_tensors(model, list_tensors(source), source)
    scratch = begin(output)
    folder = checkpoint_folder(scratch, 0)
    moved = stream(matches, folder / WEIGHTS)
    ids = write_tokenizer(source, folder / RECIPE, model.language.vocab)
    describe(folder, source, model, ids)
    figures: dict[str, object] = {
        "tensors": len(matches),
        "parameters": sum(torch.Size(match.row.shape).numel() for match in matches),
        "verified": True,
        "flow_head": any(match.row.ours.startswith("flow") for match in matches),
        "action_tokens": len(ACTION_TOKENS) if ids else 0,
        "bytes": sum(tensor.num_bytes for tensor in moved),
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if not figures["flow_head"]:
        logger.info("%s has no flow head: a run that starts from this checkpoint draws it anew", source)
    finish(scratch, output, run, origin | figures, moved)


def match_tensors(model: ModelConfig, tensors: Mapping[str, FileTensor], source: Path) -> list[Match]:
    """Every tensor of ours with the stored ones it is made of: all of the vision-language model's, and all of the
    flow head's or none.

    Raises:
        ValueError: a tensor is missing, has no place, is there twice, or has another shape or mixed dtypes.
    """
    named = without_backbone(tensors)
    head = head_table(model)
    head_names = {name for row in head for name in row.theirs}
    backbone = [name for name in named if name not in head_names]
    try:
        given = match_names(model, backbone)
    except ValueError as error:
        raise ValueError(f"{source}: {error}{_files_of(str(error), named)}") from error
    found = {new: named[name] for new, name in given.items()}
    has_head = len(backbone) < len(named)
    rows = name_table(model) + (head if has_head else [])
    found |= {name: named[name] for name in head_names & named.keys()}
    missing = sorted(name for row in rows for name in row.theirs if name not in found)
    if missing:
        raise ValueError(f"{source}: tensors of the flow head are missing: {', '.join(missing)}")
    if model.language.tied and OUTPUT_LAYER in found:
        _check_tied(found[OUTPUT_LAYER], found[EMBEDDING])
    matches = [Match(row=row, parts=tuple(found[name] for name in row.theirs)) for row in rows]
    for match in matches:
        _check_parts(match)
    return matches


def without_backbone(tensors: Mapping[str, FileTensor]) -> dict[str, FileTensor]:
    """Tensors by their names inside the vision-language model, or the flow head."""
    named: dict[str, FileTensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(BACKBONE)
        if short in named:
            raise ValueError(f"{tensor} is {named[short]} under another name: which of them counts?")
        named[short] = tensor
    return named


def _files_of(message: str, named: Mapping[str, FileTensor]) -> str:
    """The files of those tensors that a message names."""
    files = sorted({tensor.file.name for name, tensor in named.items() if name in re.split("[\\s,:]+", message)})
    return f" (in {', '.join(files)})" if files else ""


def _check_tied(output: FileTensor, embedding: FileTensor) -> None:
    if output.shape != embedding.shape or not same_bits(output.read(), embedding.read()):
        raise ValueError(f"{output} differs from {embedding}, but config.json says that they are one (tied)")


def _check_parts(match: Match) -> None:
    for part, shape in zip(match.parts, match.row.their_shapes, strict=True):
        if part.shape != shape:
            # config.json knows nothing of the flow head: its sizes are this job's own settings.
            head = match.row.ours.startswith("flow")
            source = "these flow.* settings (flow.width is its action width)" if head else "this config.json"
            raise ValueError(f"{part} has shape {list(part.shape)}; with {source} it must be {list(shape)}")
    first = match.parts[0]
    for part in match.parts:
        if part.dtype != first.dtype:
            raise ValueError(f"{part} is {part.dtype} and {first} is {first.dtype}: one tensor of ours holds both")


def stream(matches: Sequence[Match], weights: Path) -> list[Moved]:
    """Write every tensor, then compare what was written with its source; returns what there was.

    Raises:
        ValueError: naming a tensor that is not finite, or does not come back as it was.
    """
    moved = []
    with WholeWriter(weights) as writer:
        for match in tqdm(matches, desc="write", unit="tensor", disable=None):
            tensor = match.make()
            moved.append(Moved.of(match.row, tensor))
            writer.write(match.row.ours, tensor)
    del writer
    stored = StoredTensors.open(weights)
    for match in tqdm(matches, desc="verify", unit="tensor", disable=None):
        if not same_bits(stored.read(match.row.ours), match.make()):
            raise ValueError(f"{weights}: {match.row.ours} is not what was written; is the disk sound?")
    return moved


def write_tokenizer(source: Path, recipe: Path, vocab: int) -> dict[str, int]:
    """Write the source's tokenizer with EO-1's tokens behind its own; returns the special tokens' ids.

    Where the embedding has no rows left for them, it is written as it is and no ids are returned.

    Raises:
        ValueError: there is no `tokenizer.json`, or it has more ids than the model has rows.
    """
    path = source / "tokenizer.json"
    read_json(path)
    plain, tokenizer = Tokenizer.from_file(str(path)), Tokenizer.from_file(str(path))
    size = 1 + max(plain.get_vocab(with_added_tokens=True).values())
    if size > vocab:
        raise ValueError(f"{path} has {size} ids, the model only {vocab} rows: it is another model's")
    add_special_tokens(tokenizer, ACTION_TOKENS)
    fits = tokenizer.get_vocab_size(with_added_tokens=True) <= vocab
    recipe.mkdir(parents=True)
    (tokenizer if fits else plain).save(str(recipe / "tokenizer.json"))
    if fits:
        return asdict(read_vocabulary(tokenizer))
    logger.warning("%s: the embedding's %d rows leave no room for EO-1's action tokens; they are left out", path, vocab)
    return {}


def describe(folder: Path, source: Path, model: ModelConfig, ids: dict[str, int]) -> None:
    """Write all that stands beside weights and tokenizer, the commit marker last."""
    (folder / HF).mkdir()
    for name in HF_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / HF / name)
    (folder / CONFIG).write_text(OmegaConf.to_yaml({"model": OmegaConf.structured(model)}), encoding="utf-8")
    manifests = [f"{WEIGHTS}/{path.name}" for path in sorted((folder / WEIGHTS).glob("*.json"))]
    metadata = Metadata(
        format=FORMAT,
        step=0,
        model=flat_settings(model),
        parallel={},
        special_tokens=ids,
        samples="",
        digests=file_digests(folder, [*manifests, RECIPE, HF, CONFIG]),
        versions=package_versions(),
        git_hash=git_hash(),
    )
    write_metadata(folder, metadata)
