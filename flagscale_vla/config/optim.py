"""Settings of learning: rates per part, schedule, decay, and the weights of the two losses."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale_vla.config.checks import check, check_positive, check_share


@dataclass(slots=True, kw_only=True)
class PartConfig:
    """Learning rate of one part of the model."""

    lr: float
    frozen: bool


@dataclass(slots=True, kw_only=True)
class LossConfig:
    """Weights of the two losses, each already divided by its global count."""

    text: float
    flow: float

    def __post_init__(self) -> None:
        for name in ("text", "flow"):
            value = self.__getattribute__(name)
            check(value >= 0, f"optim.loss.{name}", value, "must not be negative", 1.0)
        ok = self.text + self.flow > 0
        check(ok, "optim.loss.flow", self.flow, "must be above zero where optim.loss.text is zero", 1.0)


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """AdamW with a cosine schedule; every rate is scaled by the same curve."""

    vision: PartConfig
    merger: PartConfig
    language: PartConfig
    head: PartConfig
    warmup_steps: int
    final_share: float
    """share of the peak rate left at the last step"""
    weight_decay: float
    """matrices only: never biases and norms"""
    beta1: float
    beta2: float
    eps: float
    clip: float
    """largest global gradient norm"""
    loss: LossConfig

    def __post_init__(self) -> None:
        check(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must not be negative", 100)
        check_share("optim.final_share", self.final_share)
        for name in ("beta1", "beta2"):
            value = self.__getattribute__(name)
            check(0.0 <= value < 1.0, f"optim.{name}", value, "must lie in [0, 1)", 0.9)
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative", 0.01)
        for name in ("eps", "clip"):
            check_positive(f"optim.{name}", self.__getattribute__(name))
        parts = {"vision": self.vision, "merger": self.merger, "language": self.language, "head": self.head}
        for name, part in parts.items():
            check(
                part.lr > 0, f"optim.{name}.lr", part.lr, "must be above zero; to keep a part as it is, freeze it", 1e-5
            )
        ok = not all(part.frozen for part in parts.values())
        check(ok, "optim.head.frozen", True, "every part is frozen, so nothing would be trained", False)
