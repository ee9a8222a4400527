"""Policies for tests, opened in worker processes. They cannot see the world, only observations."""

from __future__ import annotations

import numpy as np

from flagscale_vla.records import ActionChunk


class FixedClient:
    """Answers every observation with the same action."""

    device = "cpu"

    def __init__(self, action, steps=4):
        self.action, self.steps = np.asarray(action, np.float32), steps
        self.seen = []

    def infer(self, observations, *, seed):
        self.seen.append((len(observations), seed))
        values = np.tile(self.action, (self.steps, 1))
        return [ActionChunk(values=values, key="fixed") for _ in observations]

    def normalize_action(self, robot, values):
        mean, std = np.array([0.1, 0.0, 0.0, 0.5]), np.array([0.5, 0.5, 0.5, 0.5])
        return ((values - mean) / std).astype(np.float32)


class ExplodingClient(FixedClient):
    """Fails on one task."""

    def infer(self, observations, *, seed):
        if any("drawer" in observation.instruction for observation in observations):
            raise RuntimeError("the weights are on fire")
        return super().infer(observations, seed=seed)


def open_pusher():
    return FixedClient([0.0, 1.0, 0.0, 1.0])


def open_exploding():
    return ExplodingClient([0.0, 0.0, 0.0, 0.0])


def open_broken():
    raise ValueError("no such weights")


class FixedCodec:
    """Gives back each chunk, changed in one way."""

    kind = "fixed"

    def __init__(self, horizon=16, gain=1.0, breaks_on=None):
        self.horizon, self.gain, self.breaks_on = horizon, gain, breaks_on
        self.seen, self.starts = [], []

    def reconstruct(self, robot, values, start=None):
        if robot == self.breaks_on:
            raise ValueError(f"robot={robot!r} was not fitted")
        self.seen.append(values)
        self.starts.append(start)
        gains = [self.gain] * 3 + [1.0] * (values.shape[1] - 3)
        return (values * np.array(gains)).astype(np.float32)


def open_exact_codec():
    return FixedCodec()


def open_still_codec():
    return FixedCodec(gain=0.0)


def open_unfitted_codec():
    return FixedCodec(breaks_on="metaworld_sawyer")
