"""Settings of OmniSAT, the action tokenizer whose codes are learnt, and of how it learns them."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive, check_share


@dataclass(slots=True, kw_only=True)
class KindConfig:
    """One kind of group: its spline, its network, and its residual codebooks."""

    points: int
    """control points of each dim; they cost no codes, for a code stands for all of them"""
    degree: int
    """of the polynomial pieces; 0 is steps, for what jumps"""
    latent: int
    """numbers that are quantised, at most points times the kind's dims"""
    hidden: int
    """width of the two hidden layers of encoder and decoder"""
    layers: int
    """residual layers, each of which is one code of a chunk"""
    codes: int
    """codes in the codebook of a layer"""


@dataclass(slots=True, kw_only=True)
class OmniSatConfig:
    """OmniSAT (arXiv 2510.09667): splines, then grouped residual codes."""

    position: KindConfig
    rotation: KindConfig
    gripper: KindConfig
    joints: KindConfig
    base: KindConfig
    ridge: float
    """weight of the control points' squares in a fit"""
    pin_start: bool
    """whether positions, rotations and joints that are targets begin at the robot's state: the first control point is
    then the state, which every chunk must come with. Dims that the state does not name, as steps, are as ever"""
    beam: int
    """beginnings of a string that encoding keeps from layer to layer; 1 takes each layer's nearest code"""
    endings: int
    """strings that encoding decodes in the end, to take the one that misses least; 1 takes the nearest"""
    astray: float
    """weight of what the errors of a chunk add up to, beside the errors, where codes of steps are chosen"""
    shared_ids: bool
    """whether the layers of a kind share their ids, which keeps the alphabet small; else a code's id tells its layer"""
    steps: int
    """steps over which the learning rate falls to a hundredth"""
    lr: float
    warmup: int
    """steps over which the learning rate rises"""
    decay: float
    """of the moving averages that codebooks are, per step"""
    commitment: float
    """weight of the squared way from an encoder's output to its code"""
    layer_dropout: float
    """share of chunks that are trained on a prefix of the layers"""
    turned: float
    """share of the positions and rotations trained on whose axes are swapped and turned round: movements that few
    episodes show are then learnt from all"""
    rotation_trick: bool
    """whether gradients pass the quantiser turned and stretched (Fifty et al., 2024), or straight through"""
    geodesic: float
    """weight of the angle between a rotation and what it comes back as, beside the error of its numbers"""
    drift: float
    """weight of the running sum of errors of positions and rotations, per step, beside the errors themselves"""
    padding_weight: float
    """weight of the steps that repeat an episode's last action"""
    balance: float
    """0 weighs every chunk alike, 1 every robot, however many chunks it has"""
    kmeans_rounds: int
    """rounds of k-means that codebooks start from"""
    dead_share: float
    """a code chosen less often than this share of the mean is drawn anew"""
    revive_every: int
    """steps between looks for such codes"""

    def __post_init__(self) -> None:
        for name, kind in self.kinds().items():
            _check_kind(name, kind)
        for name in ("beam", "endings", "steps", "lr", "revive_every", "kmeans_rounds"):
            check_positive(f"codec.{name}", self.__getattribute__(name))
        for name in ("ridge", "astray", "warmup", "commitment", "geodesic", "drift"):
            value = self.__getattribute__(name)
            check(value >= 0, f"codec.{name}", value, "must not be negative", 0)
        for name in ("layer_dropout", "turned", "padding_weight", "balance", "dead_share"):
            check_share(f"codec.{name}", self.__getattribute__(name))
        check(0 < self.decay < 1, "codec.decay", self.decay, "must lie in (0, 1)", 0.99)

    def kinds(self) -> dict[str, KindConfig]:
        """By name, in the order of `robots.layout.Kind`."""
        names = ("position", "rotation", "gripper", "joints", "base")
        return {name: self.__getattribute__(name) for name in names}


def _check_kind(name: str, kind: KindConfig) -> None:
    for field in ("points", "latent", "hidden", "layers"):
        check_positive(f"codec.{name}.{field}", kind.__getattribute__(field))
    ok = 0 <= kind.degree < kind.points
    check(ok, f"codec.{name}.degree", kind.degree, f"must lie in [0, points={kind.points})", 0)
    check(kind.codes > 1, f"codec.{name}.codes", kind.codes, "must be at least 2", 256)
