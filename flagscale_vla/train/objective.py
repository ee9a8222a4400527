"""From predictions to sums of losses. Sums and counts stay apart until the step divides by global counts."""

from __future__ import annotations

from flagscale_vla.model.vla import Predictions
from flagscale_vla.records import LossSums, PackedBatch


def objective(predictions: Predictions, batch: PackedBatch) -> LossSums:
    """Text cross entropy and flow-matching squared error (EO-1 report, equation 3), summed over the row.

    The velocity to be predicted is `noise - action`; steps past an episode's end and dims past the robot's own width
    have weight zero.
    """
    target = batch.noise - batch.actions
    squared = (predictions.velocities - target).square() * predictions.velocity_weight
    return LossSums(
        ce=predictions.token_losses.sum(),
        flow=squared.sum(),
        num_labels=batch.num_labels,
        num_action_values=batch.num_action_values,
    )
