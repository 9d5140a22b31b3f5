"""A property that is computed once and then kept on its object."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")


class kept(cached_property[T]):  # noqa: N801 - used like a keyword
    """`functools.cached_property` without the lock that it takes before Python 3.12.

    For values of one event loop; computing it twice would give the same.
    """

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> T:  # type: ignore[override]
        if instance is None:
            return self  # type: ignore[return-value]
        value = instance.__dict__[self.attrname] = self.func(instance)
        return value
