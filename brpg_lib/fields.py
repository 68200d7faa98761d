"""Settings that survive a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from brpg_lib.validation import plain, require_known

Self = TypeVar("Self", bound="PlainFields")


class PlainFields:
    """A dataclass of plain values, to and from the types of JSON and YAML."""

    def _make_plain(self) -> None:
        """Numbers of NumPy become Python's, lists of any kind tuples."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types (tuples become lists)."""
        fields: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls: type[Self], fields: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; fields left out keep their defaults.

        Raises:
            TypeError: A value is of a wrong type.
            ValueError: A key is not a field, or a value is out of range.
        """
        known: Any = dataclasses.fields(cls)  # type: ignore[arg-type]
        require_known(f"{cls.__name__}.", fields, [field.name for field in known])
        return cls(**fields)
