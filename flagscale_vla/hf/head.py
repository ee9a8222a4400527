"""The flow head's tensors under EO-1's names: at the top of its model, beside the backbone's."""

from __future__ import annotations

from flagscale_vla.config.model import ModelConfig
from flagscale_vla.hf.forms import Row, Same, linear


def head_table(model: ModelConfig) -> list[Row]:
    """Every tensor of the flow head, once on each side. EO-1 counts the activations between its output layers too."""
    hidden, width = model.language.hidden, model.flow.width
    inputs = {
        "state_proj": (hidden, width),
        "action_in_proj": (hidden, width),
        "action_time_mlp_in": (hidden, 2 * hidden),
        "action_time_mlp_out": (hidden, hidden),
    }
    rows = [
        row for name, shape in inputs.items() for row in linear(f"flow_in.{name}", (name,), Same(), shape, bias=True)
    ]
    last = model.flow.output_layers - 1
    for layer in range(last + 1):
        ours, theirs = f"flow_out.action_out_proj.{layer}", f"action_out_proj.{2 * layer}"
        rows += linear(ours, (theirs,), Same(), (width if layer == last else hidden, hidden), bias=True)
    return rows
