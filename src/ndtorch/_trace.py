"""Watch conversions: what each shared or copied, where it was called, how long it took."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from . import _bridge
from ._errors import CopyRequiredError
from ._plan import Plan

_PACKAGE = os.path.dirname(__file__) + os.sep
_local = threading.local()
_lock = threading.Lock()
_watching = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One conversion of one array or tensor.

    Attributes:
        site: File and line of the call, as ``file.py:12``.
        function: ``to_torch``, ``to_numpy``, ``stack`` or one of the ``image_`` functions.
        source: The described source, such as ``f64[3,4](numpy)``.
        path: Where in a structure it was found.
        shared: Whether the result is the source's memory.
        nbytes_shared: Bytes the result shares; 0 when it is a copy.
        nbytes_copied: Bytes written to fresh memory.
        seconds: Time it took.
        reason: Why it was copied; empty when shared.
    """

    site: str
    function: str
    source: str
    path: str
    shared: bool
    nbytes_shared: int
    nbytes_copied: int
    seconds: float
    reason: str


class trace(Sequence[Record]):  # noqa: N801 - reads as a statement: `with nd.trace() as t`
    """Record every conversion that the running thread makes inside the ``with`` block.

    Args:
        forbid_copies: Raise `CopyRequiredError` instead of copying, before a byte moves.

    Memory:
        Keeps descriptions, never arrays. While any trace is open, conversions take the slower, observed path.
        A tensor whose memory torch owns must not be moved to shared memory (``share_memory_``, a queue, spawned
        workers) while an array over it is in use: torch frees the old memory (pytorch#51849).

    >>> import numpy as np, ndtorch as nd
    >>> with nd.trace() as seen:
    ...     _ = nd.to_torch({"x": np.zeros(3), "y": np.zeros(3)[::-1]})
    >>> [(record.path, record.shared, record.nbytes_copied) for record in seen]
    [("['x']", True, 0), ("['y']", False, 24)]
    """

    def __init__(self, *, forbid_copies: bool = False) -> None:
        self.forbid_copies = forbid_copies
        self._records: list[Record] = []

    def __enter__(self) -> trace:
        global _watching
        with _lock:
            _watching += 1
            _bridge.watch(True)
        _open_traces().append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        global _watching
        _open_traces().remove(self)
        with _lock:
            _watching -= 1
            _bridge.watch(_watching > 0)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def nbytes_copied(self) -> int:
        """Bytes copied by all conversions together."""
        return sum(record.nbytes_copied for record in self._records)

    @property
    def nbytes_shared(self) -> int:
        """Bytes shared by all conversions together."""
        return sum(record.nbytes_shared for record in self._records)

    def __str__(self) -> str:
        rows = [("call site", "function", "source", "memory", "bytes copied", "ms", "why")]
        for r in self._records:
            source = f"{r.source} at {r.path}" if r.path else r.source
            memory = (
                "shared"
                if r.shared
                else "copied"
                if r.nbytes_copied
                else "mapped"
                if "read-only" in r.reason
                else "empty"
            )
            rows.append(
                (r.site, r.function, source, memory, f"{r.nbytes_copied:,}", f"{r.seconds * 1e3:.3f}", r.reason)
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        total = f"{len(self)} conversions, {self.nbytes_shared:,} bytes shared, {self.nbytes_copied:,} bytes copied"
        return "\n".join([*lines, total])

    def __repr__(self) -> str:
        return f"<trace of {len(self)} conversions>"

    def _check(self, plan: Plan) -> None:
        if self.forbid_copies and not plan.shares and plan.action != "map":
            raise CopyRequiredError(
                plan.options.subject,
                f"cannot share memory with {plan.source} inside trace(forbid_copies=True): {plan.reason}",
                hint="convert it outside the block, or allow copies",
                reason=plan.reason,
            )


def _open_traces() -> list[trace]:
    if not hasattr(_local, "traces"):
        _local.traces = []
    traces: list[trace] = _local.traces
    return traces


def watching() -> bool:
    """Whether the running thread has a trace open."""
    return _watching > 0 and bool(_open_traces())


def check(plan: Plan) -> None:
    """Give every open trace the chance to forbid a conversion before it starts."""
    for open_trace in _open_traces():
        open_trace._check(plan)


def record(plan: Plan, path: str, nbytes: int, seconds: float) -> None:
    """Tell every open trace of a conversion that was made; ``nbytes`` is the size of its result."""
    copies = not plan.shares and plan.action != "map"
    entry = Record(
        _call_site(),
        plan.options.subject,
        str(plan.source),
        path,
        plan.shares,
        nbytes if plan.shares else 0,
        (plan.nbytes_copied or nbytes) if copies else 0,
        seconds,
        plan.reason,
    )
    for open_trace in _open_traces():
        open_trace._records.append(entry)


def observe(function: str, source: str, reason: str, make: Callable[[], Any]) -> Any:
    """Make a result that is new memory by its nature, such as a stack, under the eyes of the open traces.

    Raises:
        CopyRequiredError: A trace forbids copies.
    """
    if any(open_trace.forbid_copies for open_trace in _open_traces()):
        fact = f"cannot make new memory of {source} inside trace(forbid_copies=True): {reason}"
        raise CopyRequiredError(function, fact, hint="call it outside the block, or allow copies", reason=reason)
    start = time.perf_counter()
    result = make()
    seconds = time.perf_counter() - start
    tensor = result[0] if isinstance(result, tuple) else result
    entry = Record(_call_site(), function, source, "", False, 0, int(tensor.nbytes), seconds, reason)
    for open_trace in _open_traces():
        open_trace._records.append(entry)
    return result


def _call_site() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
