"""Graphs of dask, computed a group of chunks at a time, so that no more than a few of them are in memory.

What several groups make use of, such as a mean over all or a neighbour's edge, is computed with the first of them and
kept until the last. What one group and such a shared result are both made of is computed for each of the two: to keep
it would be to keep the whole array.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from .._errors import NdtorchError
from .._turns import Turns

_MANY = 8  # groups that use one result: it is kept where groups are wanted in any order
_SHARED = -1  # in the place of the number of the one group that a task is for


class Graph:
    """The graph of an array, whose groups of chunks are computed one after the other.

    Args:
        array: The array of dask.
        groups: Numbers of chunks in row-major order; each group is computed at once.
    """

    def __init__(self, array: Any, groups: Sequence[Sequence[int]]) -> None:
        dask: Any = sys.modules["dask"]
        self._where = f"dask array {str(array.name)!r}"
        (optimized,) = dask.optimize(array)
        self._tasks: dict[Hashable, Any] = _futures(array) | dict(optimized.__dask_graph__())
        keys = list(dask.core.flatten(optimized.__dask_keys__()))
        self._groups = [[keys[number] for number in group] for group in groups]
        self._compute = dask.base.get_scheduler(collections=[array]) or array.__dask_scheduler__
        self._uses: dict[Hashable, tuple[Hashable, ...]] = {}
        self._held: dict[Hashable, Any] = {}
        self._turns = Turns()
        self._users = self._shared()

    def __iter__(self) -> Iterator[list[Any]]:
        """Compute the chunks of each group.

        Raises:
            NdtorchError: A task failed, with an error that is its cause.
        """
        begins: dict[int, list[Hashable]] = {}
        ends: dict[int, list[Hashable]] = {}
        for key, users in self._users.items():
            begins.setdefault(min(users), []).append(key)
            ends.setdefault(max(users), []).append(key)
        for number, chunks in enumerate(self._groups):
            ahead = begins.get(number, [])
            found = self._computed([*chunks, *ahead])
            self._held |= zip(ahead, found[len(chunks) :], strict=True)
            for key in ends.get(number, ()):
                del self._held[key]
            del found[len(chunks) :]
            yield found

    def one(self, number: int) -> list[Any]:
        """Compute the chunks of any group, by this thread alone. What many groups use is kept from the first call on.

        Raises:
            NdtorchError: A task failed, with an error that is its cause.
        """
        compute = sys.modules["dask"].local.get_sync
        with self._turns.taken():
            if self._users:
                many = min(_MANY, len(self._groups) // 2)
                kept = [key for key, users in self._users.items() if len(users) > many]
                self._held |= zip(kept, self._computed(kept, compute), strict=True)
                self._users = {}
        return self._computed(self._groups[number], compute)

    def _computed(self, wanted: list[Hashable], compute: Any = None) -> list[Any]:
        try:
            needed = self._needed(wanted)
            if compute is not None:  # by this thread, which has to have what is on a cluster
                needed = {
                    key: _literal(key, task.result()) if _is_future(task) else task for key, task in needed.items()
                }
            return list((compute or self._compute)(needed, wanted))
        except (NdtorchError, MemoryError):
            raise
        except Exception as error:  # what is in a graph may raise anything
            if isinstance(error.__context__, KeyboardInterrupt):  # it hit a lock of dask's that was just let go
                raise error.__context__ from None
            reason = _reason(error)
            fact = f"computing {self._where} failed ({type(error).__name__}: {reason})"
            raise NdtorchError("to_torch", fact, hint="array.compute() fails in the same way") from error

    def _needed(self, wanted: Iterable[Hashable]) -> dict[Hashable, Any]:
        """The tasks that lead to some keys, from what is there already."""
        needed: dict[Hashable, Any] = {}
        left = list(wanted)
        while left:
            key = left.pop()
            if key in needed:
                continue
            if key in self._held:
                needed[key] = _literal(key, self._held[key])
            else:
                needed[key] = self._tasks[key]
                left += self._uses_of(key)
        return needed

    def _uses_of(self, key: Hashable) -> tuple[Hashable, ...]:
        found = self._uses.get(key)
        if found is None:
            found = self._uses[key] = tuple(sys.modules["dask.core"].get_dependencies(self._tasks, key))
        return found

    # --- what is kept

    def _shared(self) -> dict[Hashable, set[int]]:
        """What is for several groups, and which of them use it directly: for themselves alone."""
        owners = self._owners()
        users: dict[Hashable, set[int]] = {}
        for group, keys in enumerate(self._groups):
            for key in keys:
                users.setdefault(key, set()).add(group)
        for key, owner in owners.items():
            for other in self._uses_of(key) if owner != _SHARED else ():
                users.setdefault(other, set()).add(owner)
        return {key: groups for key, groups in users.items() if len(groups) > 1 and not _is_literal(self._tasks[key])}

    def _owners(self) -> dict[Hashable, int]:
        """The one group that each task is for, whoever else asks, or that it is for several."""
        owners: dict[Hashable, int] = {}
        for group, keys in enumerate(self._groups):
            owners |= dict.fromkeys(keys, group)
        for key in reversed(self._in_order()):
            for other in self._uses_of(key):
                owners[other] = owners[key] if owners.get(other, owners[key]) == owners[key] else _SHARED
        return owners

    def _in_order(self) -> list[Hashable]:
        """All tasks, each after those that it makes use of."""
        order: list[Hashable] = []
        seen: set[Hashable] = set()
        left = [(key, False) for group in self._groups for key in group]
        while left:
            key, is_done = left.pop()
            if is_done:
                order.append(key)
            elif key not in seen:
                seen.add(key)
                left.append((key, True))
                left += [(other, False) for other in self._uses_of(key) if other not in seen]
        return order


def _reason(error: Exception) -> str:
    """The first line of what an error says, if it can say it."""
    try:
        return (str(error).splitlines() or [""])[0]
    except Exception:
        return ""


def _literal(key: Hashable, value: Any) -> Any:
    """What stands for a value in a graph."""
    node = getattr(sys.modules.get("dask._task_spec"), "DataNode", None)
    return value if node is None else node(key, value)


def _futures(array: Any) -> dict[Hashable, Any]:
    """What a cluster of dask.distributed has computed of an array already, which `dask.optimize` drops."""
    if "distributed" not in sys.modules:
        return {}
    return {key: task for key, task in dict(array.__dask_graph__()).items() if _is_future(task)}


def _is_future(task: Any) -> bool:
    return isinstance(task, getattr(sys.modules.get("distributed"), "Future", ()))


def _is_literal(task: Any) -> bool:
    return _is_future(task) or isinstance(task, getattr(sys.modules.get("dask._task_spec"), "DataNode", ()))
