"""Engines: who does the work. One protocol, one row an engine; scheduling and transport are theirs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Iterable
from typing import Protocol

from ..._errors import InvalidOptionError
from ...files import holds_gil
from ..units import Unit
from .outcomes import Done, Work

ENGINES = ("local", "threads", "processes", "ray")
_MOST_THREADS = 8


class Engine(Protocol):
    """Does units, several at a time, and yields each as it finishes. To close what it yields from stops it."""

    def run(self, work: Work, units: Iterable[Unit]) -> Generator[Done, None, None]:
        """Do all units, in any order.

        Raises:
            NdtorchError: No unit can be done at all; what is wrong with one unit is in its `Done`.
        """
        ...


def check_engine(name: str, *, workers: int | None = None, address: str | None = None) -> None:
    """Refuse an engine that there is not, and options that it does not have.

    Raises:
        InvalidOptionError: There is none of that name, or an option is not one of its.
        MissingDependencyError: Its library is not installed.
    """
    if name not in ENGINES:
        raise InvalidOptionError(
            "convert", f"engine={name!r} is unknown", expected=f"one of {', '.join(ENGINES)}", got=repr(name)
        )
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise InvalidOptionError("convert", f"workers={workers!r} cannot work", expected="1 or more", got=repr(workers))
    if address is not None and name != "ray":
        hint = "engine='ray' (--engine ray) connects to a cluster; leave the address out for this machine"
        raise InvalidOptionError("convert", f"address={address!r} is for a cluster, not for engine={name!r}", hint=hint)
    if name == "ray":
        from .ray import check_cluster

        check_cluster(address)


def engine_for(
    name: str,
    units: list[Unit],
    *,
    workers: int | None = None,
    address: str | None = None,
    source_format: str | None = None,
) -> Engine:
    """The engine that does some units.

    ``local`` is threads, or processes where a library that reads the sources holds the GIL and each process would do
    more than one unit: a process begins with the import of torch.

    Args:
        name: Its name, which `check_engine` has found to be one.
        units: What there is to do.
        workers: How many units are done at a time; else what there are CPUs for.
        address: The cluster.
        source_format: Name of the format of the sources, where their suffixes do not tell.
    """
    if name == "ray":
        module = importlib.import_module(".ray", __name__)
        found: Engine = module.Ray(workers, address)
        return found
    from .processes import Processes
    from .threads import Threads

    cpus = len(os.sched_getaffinity(0))
    if name == "local":
        count = min(workers or cpus, len(units))
        is_worth_it = 1 < count < len(units)
        slow = is_worth_it and any(holds_gil(unit.files[0].path, source_format) for unit in units)
        name = "processes" if slow else "threads"
    if name == "processes":
        return Processes(min(workers or cpus, max(len(units), 1)))
    return Threads(workers or min(_MOST_THREADS, cpus))


__all__ = ["ENGINES", "Done", "Engine", "Work", "check_engine", "engine_for"]
