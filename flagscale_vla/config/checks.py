"""How a setting is refused: the key, its value, the rule, and a value that would pass."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot work. Its message names the key, the value, the rule, and a value that would pass."""


def check(ok: bool, key: str, value: object, rule: str, passes: object) -> None:
    """Refuse `key=value` unless `ok`.

    Raises:
        ConfigError: naming all four of key, value, rule and what would pass.
    """
    if not ok:
        raise ConfigError(f"{key}={value}: {rule}. This would pass: {key}={passes}")


def check_positive(key: str, value: float) -> None:
    """Refuse a count or size below one, or a rate that is not above zero."""
    check(value > 0, key, value, "must be above zero", 1)


def check_seed(value: int) -> None:
    """Refuse a seed that NumPy and torch would not both take."""
    check(0 <= value < 2**32, "seed", value, "must lie in [0, 2^32)", 0)


def check_share(key: str, value: float) -> None:
    """Refuse a share outside [0, 1]."""
    check(0.0 <= value <= 1.0, key, value, "must lie in [0, 1]", 0.5)
