"""One section of a Hugging Face `config.json`, whose values are read by key and refused by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Section:
    """A section, and its place in the file: empty, or `vision_config.`."""

    place: str
    values: Mapping[str, Any]

    def section(self, key: str) -> Section:
        """The section under a key.

        Raises:
            ValueError: where there is none.
        """
        value = self._get(key)
        if not isinstance(value, Mapping):
            raise self.refusal(key, "must be a section")
        return Section(f"{self.place}{key}.", value)

    def over(self, defaults: Mapping[str, Any]) -> Section:
        """The section with what it leaves out taken from `defaults`."""
        return Section(self.place, {**defaults, **self.values})

    def integer(self, key: str) -> int:
        """A whole number.

        Raises:
            ValueError: where it is missing or something else.
        """
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refusal(key, "must be a whole number")
        return value

    def real(self, key: str) -> float:
        """A number.

        Raises:
            ValueError: where it is missing or something else.
        """
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, "must be a number")
        return float(value)

    def integers(self, key: str) -> list[int]:
        """A list of whole numbers.

        Raises:
            ValueError: where it is missing or something else.
        """
        value = self._get(key)
        if not isinstance(value, list | tuple) or not all(isinstance(entry, int) for entry in value):
            raise self.refusal(key, "must be a list of whole numbers")
        return list(value)

    def only(self, key: str, *supported: object) -> None:
        """Refuse a key that has another value; where it is missing, `transformers` takes the first."""
        if key in self.values and self.values[key] not in supported:
            raise self.refusal(key, f"supported: {_list(supported)}")

    def must(self, key: str, supported: object) -> None:
        """Refuse a key that has another value or is missing, where `transformers` takes another."""
        if self._get(key) != supported:
            raise self.refusal(key, f"supported: {supported}")

    def refusal(self, key: str, rule: str) -> ValueError:
        """The error to raise about a key."""
        return ValueError(f"config.json: {self.place}{key}={self.values.get(key)!r}: {rule}")

    def _get(self, key: str) -> Any:
        if key not in self.values:
            raise ValueError(f"config.json: {self.place}{key} is missing")
        return self.values[key]


def _list(supported: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in supported)
