"""Other programs' datasets become shards: one frame that every converter fills in."""
