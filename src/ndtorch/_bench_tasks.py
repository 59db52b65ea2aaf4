"""What a task costs that does nothing, on each engine; and which of the others are installed."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from .scale.engines import engine_for
from .scale.ledger import Entry
from .scale.units import SourceFile, Unit

_ROUNDS = 5
_TASKS, _FEW_TASKS = 1000, 50
_BLOCKS = "Ray Data, a block a task"


@dataclass(frozen=True)
class Overhead:
    """What a task costs that does nothing.

    Attributes:
        side: Who has it done.
        workers: By how many.
        start: Seconds until the first is done, with the cluster up.
        each: Seconds for each of many more.
    """

    side: str
    workers: int
    start: float
    each: float


def library(name: str) -> Any:
    """A peer, of whose types nothing is known: not all of them are installed everywhere."""
    return importlib.import_module(name)


def has(library: str) -> bool:
    """Whether a peer is installed."""
    return importlib.util.find_spec(library) is not None


def nothing(unit: Unit) -> Entry:
    """The work of a unit of which nothing is to be done."""
    return Entry(unit.number, "", ())


def _units(count: int) -> list[Unit]:
    return [Unit(number, (SourceFile(f"{number}.npy", f"{number}.npy", 1, ""),)) for number in range(count)]


def _units_done(engine: str, workers: int, count: int) -> None:
    done = engine_for(engine, _units(count), workers=workers).run(nothing, _units(count))
    assert sum(each.entry is not None for each in done) == count


def _dask_done(workers: int, count: int) -> None:
    dask = library("dask")
    tasks = [dask.delayed(nothing)(unit) for unit in _units(count)]
    dask.compute(*tasks, scheduler="threads", num_workers=workers)


def _ray_data_done(count: int) -> None:
    library("ray.data").range(count, override_num_blocks=count).map_batches(_as_it_is).materialize()


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def overheads(workers: int, *, ray: bool) -> Iterator[Overhead]:
    """What a task costs on each engine, and how long the first one takes."""
    engines: Iterable[str] = ("threads", "processes") + ("ray",) * ray
    done: dict[str, Callable[[int], None]] = {name: partial(_units_done, name, workers) for name in engines}
    if has("dask"):
        done["dask.delayed, threads"] = partial(_dask_done, workers)
    if ray:
        done[_BLOCKS] = _ray_data_done
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in done}
    more = {name: _FEW_TASKS if name == _BLOCKS else _TASKS for name in done}
    for _ in range(_ROUNDS + 1):
        for name, do in done.items():
            times[name].append((_seconds(do, 1), _seconds(do, 1 + more[name])))
    for name, pairs in times.items():
        each = statistics.median((many - one) / more[name] for one, many in pairs[1:])
        yield Overhead(name, workers, statistics.median(one for one, _ in pairs[1:]), max(each, 0.0))


def _seconds(do: Callable[[int], None], count: int) -> float:
    begun = time.perf_counter()
    do(count)
    return time.perf_counter() - begun
