"""Which samples a checkpoint was trained on, in one digest."""

from __future__ import annotations

import json
from hashlib import sha256

from flagscale_vla.data.feed import Feed


def samples_digest(feed: Feed) -> str:
    """sha256 in hex of all that the order of samples follows from; it does not depend on where the shards lie."""
    digest = sha256()
    for source in feed.sources:
        index = source.index
        digest.update(json.dumps([source.name, index.shards, index.keys]).encode())
        digest.update(index.shard.tobytes() + index.lengths.tobytes() + index.segments.tobytes())
    return digest.hexdigest()
