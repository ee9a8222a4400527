"""Which samples a checkpoint was trained on, in one digest."""

from __future__ import annotations

import json
from hashlib import sha256

from flagscale_vla.data.index import Index


def samples_digest(index: Index) -> str:
    """sha256 in hex of all that the order of samples follows from; it does not depend on where the shards lie."""
    digest = sha256(json.dumps([index.shards, index.keys]).encode())
    digest.update(index.shard.tobytes() + index.lengths.tobytes())
    return digest.hexdigest()
