"""From tar shards to packed batches, the same for training and for a policy in use."""
