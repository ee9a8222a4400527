"""A local page to look at shards, episodes and packs as the model sees them."""
