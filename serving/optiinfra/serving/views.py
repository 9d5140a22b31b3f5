"""One scrape through the eyes of a contract: the series of one model, each told once, in parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optiinfra.serving.contracts import Identity, Selection
from optiinfra.serving.exposition import Exposition, Series

Part = tuple[tuple[str, str | None], ...]
"""Exposed labels and their values (None: without the label) that tell one engine or device."""
WHOLE: Part = ()


@dataclass(frozen=True, slots=True)
class View:
    """What `exposition` says of `model`; with one model behind the endpoint, whatever its name."""

    exposition: Exposition
    identity: Identity
    model: str | None = None

    def select(self, selection: Selection, part: Part = WHOLE) -> tuple[Series, ...]:
        """Its series in `part`, of one model and without the copies."""
        named = self.exposition.named(selection.name)
        mixed = len(self._models(named)) > 1
        found = [
            one
            for one in named
            if one.matches(selection.where, selection.unless)
            and all(one.labels.get(name) == value for name, value in part)
            and not (mixed and self._model(one) != self.model)
        ]
        return tuple(_lowest(found, self.identity.copies))

    def strangers(self, selection: Selection) -> tuple[str, ...]:
        """The models that it is told of when there are several, and ours is not among them."""
        models = self._models(self.exposition.named(selection.name))
        return tuple(sorted(models)) if len(models) > 1 and self.model not in models else ()

    def parts(self, selection: Selection) -> tuple[Part, ...]:
        """The engines or devices that it is told of, in order."""
        return tuple(sorted({self.part_of(one.labels) for one in self.select(selection)}, key=str))

    def part_of(self, labels: Mapping[str, str]) -> Part:
        """The engine or device that a label set belongs to."""
        return tuple((name, labels.get(name)) for name in self.identity.ours)

    def _model(self, one: Series) -> str | None:
        return one.labels.get(self.identity.model) if self.identity.model else None

    def _models(self, found: Iterable[Series]) -> set[str]:
        return {name for one in found if (name := self._model(one)) is not None}


def _lowest(found: Sequence[Series], copies: Sequence[str]) -> Iterable[Series]:
    """Of series that differ in nothing but the ranks `copies`, the one of the lowest ranks."""
    if not copies:
        return found
    kept: dict[frozenset[tuple[str, str]], Series] = {}
    for one in found:
        key = frozenset((name, value) for name, value in one.labels.items() if name not in copies)
        if key not in kept or _ranks(one.labels, copies) < _ranks(kept[key].labels, copies):
            kept[key] = one
    return kept.values()


def _ranks(labels: Mapping[str, str], copies: Sequence[str]) -> list[tuple[int, str]]:
    """Ranks as they count: 10 comes after 9."""
    return [(len(labels.get(name, "")), labels.get(name, "")) for name in copies]
