"""How OmniSAT learns: a step over a batch that ranks share, equal on one rank and on many up to rounding.

Encoders and decoders follow the gradient of the error in decoded chunks and of the commitment in latent space, by Adam.
Codebooks are moving averages. All randomness is a function of (seed, step) and, for a chunk, of the chunk's own bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flagscale_vla.action.batch import Group, join_groups, turn
from flagscale_vla.action.groups import kind_configs, kinds_of, slots
from flagscale_vla.action.keys import SumRanks, content_keys, mix
from flagscale_vla.action.kind_fitter import KindFitter, Outcome
from flagscale_vla.action.omnisat import OmniSat
from flagscale_vla.action.pins import Origins, check_pins
from flagscale_vla.action.tokenizer import Floats
from flagscale_vla.action.units import Units
from flagscale_vla.config.tokenizer import OmniSatConfig
from flagscale_vla.robots.embodiments import Embodiment
from flagscale_vla.robots.layout import Kind, Part, parts_of
from flagscale_vla.robots.statistics import RobotStatistics

Tensors = Mapping[str, Tensor]
LAST_LR = 0.01
"""Share of the learning rate that the last step has."""


class Fitter:
    """Fits an `OmniSat`.

    Args:
        config: the codec's settings.
        embodiments: the robots, by name.
        statistics: of each robot that is to be known.
        horizon: steps H of the chunks it learns from.
        seed: of weights, codebooks and dropped layers.
        sum_ranks: adds a tensor up over all ranks, in place; nothing to do for one rank.

    Raises:
        ValueError: statistics that are not their robot's; or an action dim that belongs to no group.
        ConfigError: `pin_start` where no robot has a part that could begin at its state.
    """

    def __init__(
        self,
        config: OmniSatConfig,
        embodiments: Mapping[str, Embodiment],
        statistics: Mapping[str, RobotStatistics],
        horizon: int,
        seed: int,
        sum_ranks: SumRanks,
    ) -> None:
        self.config, self.horizon, self.seed, self.sum_ranks = config, horizon, seed, sum_ranks
        self.units = Units(embodiments, statistics)
        self.origins = Origins(self.units, config.pin_start)
        if config.pin_start:
            check_pins(self.units.embodiments)
        entries = kind_configs(config)
        kinds = kinds_of(self.units.embodiments.values())
        self.kinds = {kind: KindFitter(kind, config, entries[kind]) for kind in kinds}

    def begin(self, chunks: Tensors, valid: Tensors, starts: Tensors | None = None) -> None:
        """Start networks by principal components and codebooks by k-means. Every rank gives the same chunks.

        Args:
            chunks: f32[n, H, A0] in own units, by robot.
            valid: bool[n, H], false past the end of an episode.
            starts: f32[n, S0] the robot's state where each chunk begins; only a codec with `pin_start` needs it.

        Raises:
            ValueError: no chunk has a group of some kind.
            ChunkError: a chunk is not its robot's.
        """
        groups = self._groups(chunks, valid, starts or {}, 0)
        for kind, fitter in self.kinds.items():
            if not len(groups[kind].keys):
                raise ValueError(f"there is no chunk with a group of kind {kind.value} to start its codebooks from")
            fitter.begin(groups[kind], self.seed)
        self._agree()

    def _agree(self) -> None:
        """Make every rank's state the mean of all, which differ by rounding at most: the same bits everywhere."""
        ranks = torch.ones(())
        self.sum_ranks(ranks)
        state = self.state()
        for tensor in state.values():
            self.sum_ranks(tensor)
            tensor /= ranks
        self.load_state(state)

    def step(self, chunks: Tensors, valid: Tensors, step: int, starts: Tensors | None = None) -> dict[str, float]:
        """Learn from a batch, of which this rank holds a share.

        Args:
            chunks: f32[n, H, A0] in own units, by robot.
            valid: bool[n, H], false past the end of an episode.
            step: from 0.
            starts: f32[n, S0] as in `begin`.

        Returns:
            Of the whole batch, the same on every rank: `error` in scaled values, also by kind; `commitment`, the mean
            square of what is left in latent space; `codes_used`, the least share over layers.

        Raises:
            ChunkError: a chunk is not its robot's.
        """
        groups = self._groups(chunks, valid, starts or {}, step + 1)
        weights = torch.stack([torch.stack([g.weights.sum(), g.chunk_weights.sum()]) for g in groups.values()])
        self.sum_ranks(weights)
        totals = dict(zip(groups, weights, strict=True))
        outcomes = {
            kind: fitter.learn(groups[kind], totals[kind], self.seed, step) for kind, fitter in self.kinds.items()
        }
        outcomes = self._sum(outcomes)
        for kind, fitter in self.kinds.items():
            lr, weight = self._lr(step), totals[kind][1]
            fitter.apply(outcomes[kind], weight, lr=lr, step=step, sum_ranks=self.sum_ranks)
        return self._figures(outcomes, totals)

    def _lr(self, step: int) -> float:
        """Rises in a straight line, then falls as half a cosine (Loshchilov and Hutter, 2017)."""
        config = self.config
        done = min(step / config.steps, 1.0)
        fall = LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * done)) / 2
        return config.lr * fall * min(1.0, (step + 1) / (config.warmup + 1))

    def _sum(self, outcomes: Mapping[Kind, Outcome]) -> dict[Kind, Outcome]:
        """The outcomes of all ranks together, in one message."""
        parts = [t for o in outcomes.values() for t in (*o.gradients.values(), o.added, o.figures)]
        flat = torch.cat([part.flatten() for part in parts])
        self.sum_ranks(flat)
        pieces = iter(flat.split([part.numel() for part in parts]))
        return {
            kind: replace(
                outcome,
                gradients={name: next(pieces).view_as(old) for name, old in outcome.gradients.items()},
                added=next(pieces).view_as(outcome.added),
                figures=next(pieces).view_as(outcome.figures),
            )
            for kind, outcome in outcomes.items()
        }

    def _figures(self, outcomes: Mapping[Kind, Outcome], totals: Mapping[Kind, Tensor]) -> dict[str, float]:
        errors = {kind: float(outcome.figures[0]) for kind, outcome in outcomes.items()}
        shares = {kind: float(total[0]) for kind, total in totals.items()}
        whole = sum(errors[kind] * shares[kind] for kind in errors) / max(sum(shares.values()), 1e-12)
        figures = {"error": whole} | {f"error_{kind.value}": error for kind, error in errors.items()}
        figures["commitment"] = sum(float(outcome.figures[1]) for outcome in outcomes.values()) / len(outcomes)
        figures["codes_used"] = min(fitter.codes_used() for fitter in self.kinds.values())
        return figures

    def _groups(self, chunks: Tensors, valid: Tensors, starts: Tensors, draw: int) -> dict[Kind, Group]:
        """The batch, one group for each kind, some turned; `draw` tells one drawing of turns from another."""
        found: dict[Kind, list[Group]] = {kind: [self._empty(kind)] for kind in self.kinds}
        for robot, values in chunks.items():
            start = starts[robot].numpy() if robot in starts else None
            origin = self.origins.of(robot, start, len(values))
            scaled = torch.from_numpy(self.units.normalize(robot, values.numpy(), origin))
            bounds = self._bounds(robot, origin)
            keys = content_keys(values)
            for number, part in enumerate(parts_of(self.units.robot(robot))):
                found[part.kind].append(self._group(robot, part, scaled, valid[robot], bounds, mix(keys, number)))
        joined = {kind: join_groups(groups) for kind, groups in found.items()}
        return {kind: turn(group, self.config.turned, self.seed, draw) for kind, group in joined.items()}

    def _group(self, robot: str, part: Part, scaled: Tensor, valid: Tensor, bounds: Tensors, keys: Tensor) -> Group:
        values = slots(scaled, part)
        ones = slots(torch.ones_like(scaled), part)
        weight = self._weight(robot)
        steps = torch.where(valid, 1.0, self.config.padding_weight)[..., None]
        return Group(
            values=values,
            weights=weight * steps * ones,
            chunk_weights=torch.full((len(values),), weight),
            keys=keys,
            pinned=torch.full((len(values),), self.origins.pins(robot, part)),
            plain=torch.ones(len(values), dtype=torch.bool),
            **{name: slots(tensor.expand_as(scaled), part) for name, tensor in bounds.items()},
        )

    def _weight(self, robot: str) -> float:
        """What each chunk of a robot counts: less, the more chunks the robot has."""
        counts = {name: max(entry.action.count, 1) for name, entry in self.units.statistics.items()}
        mean = sum(counts.values()) / len(counts)
        return float((mean / counts[robot]) ** self.config.balance)

    def _bounds(self, robot: str, origin: Floats) -> dict[str, Tensor]:
        """Range and radians of each dim counted from `origin`, f32[n or 1, 1, A0]; the numbers of a robot without
        `action_scale` count as radians."""
        scale = self.units.scaler(robot).scale
        low, high = ((limit - origin) / scale for limit in self.units.limits(robot))
        radians = np.asarray(self.units.robot(robot).action_scale or (1.0,) * len(scale), np.float32)
        bounds = {"low": low, "high": high, "radians": scale * radians, "shift": origin * radians}
        return {name: torch.from_numpy(bound) for name, bound in bounds.items()}

    def _empty(self, kind: Kind) -> Group:
        """No group: a rank may hold none of a kind."""
        none = torch.zeros(0, self.horizon, kind.width)
        row = torch.zeros(0)
        return Group(
            values=none,
            weights=none,
            chunk_weights=row,
            low=none,
            high=none,
            radians=none,
            shift=none,
            keys=row.to(torch.int64),
            pinned=row.to(torch.bool),
            plain=row.to(torch.bool),
        )

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that the next step depends on besides its batch and number."""
        return {
            f"{kind.value}.{name}": tensor.clone()
            for kind, fitter in self.kinds.items()
            for name, tensor in fitter.state().items()
        }

    def load_state(self, state: Tensors) -> None:
        """Go on from what `state` gave, to the bit.

        Raises:
            ValueError: it is another codec's.
        """
        own = {name: list(tensor.shape) for name, tensor in self.state().items()}
        given = {name: list(tensor.shape) for name, tensor in state.items()}
        if own != given:
            wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))[0]
            raise ValueError(f"{wrong} has shape {given.get(wrong)} in this state; the codec has {own.get(wrong)}")
        for kind, fitter in self.kinds.items():
            begin = f"{kind.value}."
            fitter.load_state({name.removeprefix(begin): t for name, t in state.items() if name.startswith(begin)})

    def tokenizer(self) -> OmniSat:
        """The codec as it is now; later steps do not change it."""
        coders = {kind: (copy.deepcopy(f.autoencoder), copy.deepcopy(f.quantizer)) for kind, f in self.kinds.items()}
        return OmniSat(self.config, coders, self.units)
