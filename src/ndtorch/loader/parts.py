"""Columns put together: what a leaf gives, or a structure of leaves, and how one batch is made of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from .columns import Column

SUBJECT = "Loader"


class SourceOptions(NamedTuple):
    """What becomes of rows on their way into a batch, as `Loader` documents it."""

    float_dtype: Any = None
    image: Any = None
    pad_value: Any = None
    collate_fn: Callable[[Sequence[Any]], Any] | None = None
    threads: int | None = None


class Sources(NamedTuple):
    """Columns, and how their batches make one batch of the structure that was given.

    Attributes:
        columns: One for each leaf.
        paths: Where each is in the structure; empty for a single one.
        rebuild: Makes a batch of one leaf for each column.
    """

    columns: list[Column]
    paths: list[str]
    rebuild: Callable[[list[Any]], Any]

    @property
    def length(self) -> int:
        """How many samples there are."""
        return self.columns[0].length


def single(column: Column, path: str = "") -> Sources:
    """What one column is on its own."""
    return Sources([column], [path], _only)


def constant(value: Any) -> Sources:
    """A leaf that is the same in every batch."""
    return Sources([], [], lambda leaves: value)


def combined(parts: Iterable[Sources], rebuild: Callable[[list[Any]], Any]) -> Sources:
    """Put parts together; ``rebuild`` makes a batch of one result for each of them."""
    parts = list(parts)
    columns = [column for part in parts for column in part.columns]
    paths = [path for part in parts for path in part.paths]
    if all(part.rebuild is _only for part in parts):
        return Sources(columns, paths, rebuild)

    def rebuild_all(leaves: list[Any]) -> Any:
        each = iter(leaves)
        return rebuild([part.rebuild(list(islice(each, len(part.columns)))) for part in parts])

    return Sources(columns, paths, rebuild_all)


def _only(leaves: list[Any]) -> Any:
    return leaves[0]
