"""Settings of `view_data`: what is looked at, and where the page is served."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_seed
from flagscale_vla.config.data import ActionConfig, DataConfig
from flagscale_vla.config.model import ModelConfig

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONGEST_PORT = 65535
SHORTEST_TOKEN = 16


@dataclass(slots=True, kw_only=True)
class ViewRun:
    """Serving a page on shards: samples are made as a training run of these settings would."""

    host: str
    port: int
    """0 takes a free one"""
    token: str
    """what a visitor must show; needed where others than this machine can reach the page"""
    seed: int
    """of the training run: of its order, noise and augmentation"""
    model: ModelConfig
    data: DataConfig
    action: ActionConfig

    def __post_init__(self) -> None:
        check(bool(self.host), "host", "''", "must name the address to listen at", "127.0.0.1")
        check(0 <= self.port <= LONGEST_PORT, "port", self.port, f"must lie in [0, {LONGEST_PORT}]; 0 is a free one", 0)
        check_seed(self.seed)
        ok = self.host in LOOPBACK or len(self.token) >= SHORTEST_TOKEN
        rule = f"host={self.host} can be reached by others: at least {SHORTEST_TOKEN} characters are needed"
        check(ok, "token", "*" * len(self.token) or "''", rule, "$(openssl rand -hex 16)")
