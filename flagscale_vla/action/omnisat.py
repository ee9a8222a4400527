"""OmniSAT (arXiv 2510.09667): chunks as short strings of residual codes of a fixed length, coarse to fine.

Position, rotation, gripper and so on of each arm are groups of their own. Each is fitted by a spline, encoded, and
quantised layer by layer; robots and arms share what belongs to a kind. A string is layer-major: layer 0 of every part
in the order of `parts_of`, then layer 1 of every part that has one, and so on. Any prefix of layers decodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from flagscale_vla.action.autoencoder import Autoencoder
from flagscale_vla.action.groups import from_points, kind_configs, kinds_of, slots
from flagscale_vla.action.losses import STEPPED
from flagscale_vla.action.pins import Origins, pinned_parts
from flagscale_vla.action.quantizer import ResidualQuantizer
from flagscale_vla.action.ranges import RangeGrammar
from flagscale_vla.action.search import Search
from flagscale_vla.action.stored import WEIGHTS_FILE, Stored, write_stored
from flagscale_vla.action.tokenizer import Codes, CodesError, Floats
from flagscale_vla.action.units import Units
from flagscale_vla.config.tokenizer import KindConfig, OmniSatConfig
from flagscale_vla.robots.layout import Kind, Part, parts_of

Coder = tuple[Autoencoder, ResidualQuantizer]


class OmniSat:
    """An `ActionTokenizer`. It takes chunks of any horizon: splines bring them to the control points of the fit.

    Args:
        config: the settings it was fitted with.
        coders: of each kind that some robot has.
        units: the robots.
        layers: how many layers of each kind are used, at most; 0 for all.

    Raises:
        ValueError: a kind's coder is missing, or `layers` is negative.
    """

    kind = "omnisat"

    def __init__(self, config: OmniSatConfig, coders: Mapping[Kind, Coder], units: Units, layers: int = 0) -> None:
        if layers < 0:
            raise ValueError(f"layers={layers}: must not be negative; 0 is all of them")
        self.config, self.units, self.max_layers = config, units, layers
        self.embodiments, self.statistics = units.embodiments, units.statistics
        self.kinds = kinds_of(units.embodiments.values())
        missing = [kind.value for kind in self.kinds if kind not in coders]
        if missing:
            raise ValueError(f"there is no coder for the groups {missing}")
        self.coders = {kind: coders[kind] for kind in self.kinds}
        self._searches: dict[tuple[Kind, int, bool, bool], Search] = {}

    @cached_property
    def _configs(self) -> Mapping[Kind, KindConfig]:
        return kind_configs(self.config)

    def layers(self, kind: Kind) -> int:
        """Residual layers of a kind that are used."""
        layers = self._configs[kind].layers
        return min(layers, self.max_layers) if self.max_layers else layers

    def with_layers(self, layers: int) -> OmniSat:
        """The same codec with the first `layers` layers of each kind only; 0 for all.

        Raises:
            ValueError: it is negative.
        """
        return OmniSat(self.config, self.coders, self.units, layers)

    @cached_property
    def _offsets(self) -> dict[tuple[int, Kind], int]:
        """(layer, kind) to the id of its first code: layer-major, so that coarse ids come first."""
        offsets: dict[tuple[int, Kind], int] = {}
        free = 0
        for layer in range(max(self.layers(kind) for kind in self.kinds)):
            for kind in self.kinds:
                if layer >= self.layers(kind):
                    continue
                if self.config.shared_ids and layer:
                    offsets[layer, kind] = offsets[0, kind]
                    continue
                offsets[layer, kind] = free
                free += self._configs[kind].codes
        return offsets

    @cached_property
    def num_codes(self) -> int:
        """Size of the alphabet."""
        return max(offset + self._configs[kind].codes for (_, kind), offset in self._offsets.items())

    def places(self, robot: str) -> list[tuple[int, int]]:
        """What stands at each place of a robot's strings: the number of a part, and a layer.

        Raises:
            ChunkError: the robot is unknown.
        """
        parts = parts_of(self.units.robot(robot))
        most = max(self.layers(part.kind) for part in parts)
        return [(i, layer) for layer in range(most) for i, part in enumerate(parts) if layer < self.layers(part.kind)]

    @cached_property
    def _origins(self) -> Origins:
        return Origins(self.units, self.config.pin_start)

    def encode(self, robot: str, values: Floats, start: Floats | None = None) -> list[Codes]:
        """Strings of codes of chunks: see `ActionTokenizer`."""
        origin = self._origins.of(robot, start, len(values))
        chunks = torch.from_numpy(self.units.normalize(robot, values, origin))
        low, high = self._bounds(robot, origin)
        parts = parts_of(self.units.robot(robot))
        with torch.no_grad():
            codes = [self._encode(robot, part, *(slots(each, part) for each in (chunks, low, high))) for part in parts]
        columns = [codes[part][:, layer] for part, layer in self.places(robot)]
        rows = torch.stack(columns, dim=1).numpy() + self._grammar(robot).lows
        return list(rows)

    def _bounds(self, robot: str, origin: Floats) -> tuple[Tensor, Tensor]:
        """The range of scaled values, f32[N or 1, 1, A0] each."""
        scale = self.units.scaler(robot).scale
        low, high = ((limit - origin) / scale for limit in self.units.limits(robot))
        return torch.from_numpy(low), torch.from_numpy(high)

    def _encode(self, robot: str, part: Part, filled: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Codes i64[n, L] of groups f32[n, H, w] in a range f32[n or 1, 1, w]."""
        steps = part.kind in STEPPED and part not in pinned_parts(self.units.robot(robot))
        search = self._search(part.kind, filled.shape[1], self._origins.pins(robot, part), steps)
        return search.find(filled, low, high, self.layers(part.kind))

    def _search(self, kind: Kind, horizon: int, pinned: bool, steps: bool) -> Search:
        """Made when it is first wanted. Errors of steps add up, those of targets do not."""
        key = kind, horizon, pinned, steps
        if key not in self._searches:
            weight = self.config.astray if steps else 0.0
            self._searches[key] = Search(
                *self.coders[kind], self.config, self._configs[kind], horizon=horizon, pinned=pinned, weight=weight
            )
        return self._searches[key]

    def decode(self, robot: str, codes: Sequence[Codes], horizon: int, start: Floats | None = None) -> Floats:
        """Chunks of strings of codes: see `ActionTokenizer`."""
        grammar = self.grammar(robot, horizon)
        rows = torch.from_numpy(grammar.stack(codes) - grammar.lows)
        origin = self._origins.of(robot, start, len(rows))
        chunks = torch.zeros(len(rows), horizon, self.units.dims(robot))
        places = self.places(robot)
        with torch.no_grad():
            for number, part in enumerate(parts_of(self.units.robot(robot))):
                own = [place for place, (owner, _) in enumerate(places) if owner == number]
                pinned = torch.full((len(rows),), self._origins.pins(robot, part))
                filled = self._decode(part.kind, rows[:, own], horizon, pinned)
                chunks[..., list(part.dims)] = filled[..., list(part.slots)]
        return self.units.unnormalize(robot, chunks.numpy(), origin)

    def _decode(self, kind: Kind, codes: Tensor, horizon: int, pinned: Tensor) -> Tensor:
        autoencoder, quantizer = self.coders[kind]
        return from_points(autoencoder.decode(quantizer.decode(codes)), self._configs[kind], horizon, pinned)

    def grammar(self, robot: str, horizon: int) -> RangeGrammar:
        """What `decode` takes, the same for every horizon: see `ActionTokenizer`."""
        if horizon < 1:
            raise CodesError(f"horizon={horizon}: must be at least 1")
        return self._grammar(robot)

    def _grammar(self, robot: str) -> RangeGrammar:
        parts = parts_of(self.units.robot(robot))
        kinds = [(layer, parts[part].kind) for part, layer in self.places(robot)]
        lows = np.asarray([self._offsets[place] for place in kinds], np.int64)
        return RangeGrammar(lows, np.asarray([self._configs[kind].codes for _, kind in kinds], np.int64))

    def save(self, folder: Path) -> None:
        """Write what `load_action_tokenizer` reads."""
        tensors = {
            f"{kind.value}.{name}": tensor.contiguous()
            for kind, (autoencoder, quantizer) in self.coders.items()
            for name, tensor in (autoencoder.state_dict() | {"books": quantizer.books}).items()
        }
        config = asdict(self.config) | {"max_layers": self.max_layers}
        write_stored(
            folder, Stored(kind=self.kind, config=config, units=self.units, files={WEIGHTS_FILE: save(tensors)})
        )

    @staticmethod
    def from_stored(stored: Stored) -> OmniSat:
        """What `save` wrote.

        Raises:
            ValueError: the weights are missing or another tokenizer's.
        """
        if WEIGHTS_FILE not in stored.files:
            raise ValueError(f"{WEIGHTS_FILE} is missing: it holds codebooks and networks")
        entries = dict(stored.config)
        layers = entries.pop("max_layers")
        config = config_from_json(entries)
        tensors = load(stored.files[WEIGHTS_FILE])
        coders = {kind: _read_coder(kind, config, tensors) for kind in kinds_of(stored.units.embodiments.values())}
        return OmniSat(config, coders, stored.units, layers)


def config_from_json(entries: Mapping[str, object]) -> OmniSatConfig:
    """The settings of `asdict(config)`.

    Raises:
        TypeError: a field is missing or unknown.
        ConfigError: a value that cannot be.
    """
    fields = {key: KindConfig(**value) if isinstance(value, dict) else value for key, value in entries.items()}
    return OmniSatConfig(**fields)  # type: ignore[arg-type]


def _read_coder(kind: Kind, config: OmniSatConfig, tensors: Mapping[str, Tensor]) -> Coder:
    """Autoencoder and codebooks of one kind."""
    begin = f"{kind.value}."
    own = {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}
    entry = kind_configs(config)[kind]
    books, shape = own.pop("books", None), [entry.layers, entry.codes, entry.latent]
    if books is None or list(books.shape) != shape:
        raise ValueError(
            f"{WEIGHTS_FILE}: {begin}books must be f32{shape}, not {list(books.shape) if books is not None else None}"
        )
    autoencoder = Autoencoder(entry, kind.width)
    try:
        autoencoder.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"{WEIGHTS_FILE}: {error}") from error
    return autoencoder, ResidualQuantizer(books)
