"""Changing weights: the training loop, its checkpoints, its schedule and its report."""
