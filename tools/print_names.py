"""Print which tensor of ours holds which of Hugging Face's, how, and in what shapes.

python tools/print_names.py 3b --layer 0
python tools/print_names.py internvl3_1b --old
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flagscale_vla.config.model import ModelConfig
from flagscale_vla.config.schema import register_schemas
from flagscale_vla.hf.forms import Form, Grouped, Row, Stacked
from flagscale_vla.hf.head import head_table
from flagscale_vla.hf.spelling import old_name
from flagscale_vla.hf.table import name_table

CONF = Path(__file__).parents[1] / "conf"
HEADER = ("ours", "shape", "form", "theirs", "shape")


def main() -> None:
    """Read the command line and print the table."""
    models = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=models, help="a model of conf/model")
    parser.add_argument("--old", action="store_true", help="their names as in older files on the hub")
    parser.add_argument("--layer", type=int, help="print this layer of each tower alone, beside what is in no layer")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    last = max(model.vision.layers, model.language.layers) - 1
    if arguments.layer is not None and not 0 <= arguments.layer <= last:
        parser.error(f"--layer={arguments.layer}: {arguments.model} has layers 0 to {last}")
    backbone = [row for row in name_table(model) if is_printed(row, arguments.layer)]
    lines = [line for row in backbone for line in cells(row, model if arguments.old else None)]
    lines += [line for row in head_table(model) for line in cells(row, None)]
    print("\n".join(aligned([HEADER, *lines])))


def load_model(name: str) -> ModelConfig:
    """The settings of a model of `conf/model`."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base=None):
        model = OmegaConf.to_object(compose("train_3b_action", overrides=[f"model={name}"]).model)
    assert isinstance(model, ModelConfig)
    return model


def is_printed(row: Row, layer: int | None) -> bool:
    """Whether a row is of the chosen layer or of none."""
    found = re.search(r"\.layers\.(\d+)\.", row.ours)
    return layer is None or found is None or int(found[1]) == layer


def cells(row: Row, older: ModelConfig | None) -> Iterator[tuple[str, ...]]:
    """A line for each of theirs; ours stands on the first. Names are the old ones of the model `older`."""
    for n, (name, shape) in enumerate(zip(row.theirs, row.their_shapes, strict=True)):
        theirs = old_name(older, name) if older else name
        ours = (row.ours, by(row.shape), form_name(row.form)) if n == 0 else ("", "", "")
        yield (*ours, theirs, by(shape))


def form_name(form: Form) -> str:
    """How ours is made of theirs, in a word."""
    if isinstance(form, Grouped):
        return f"{form.groups} groups of heads"
    return f"stack of {form.count}" if isinstance(form, Stacked) else type(form).__name__.lower()


def by(shape: tuple[int, ...]) -> str:
    """A shape as it is spoken."""
    return " x ".join(map(str, shape))


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Lines with their columns under one another."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


if __name__ == "__main__":
    main()
