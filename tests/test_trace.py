"""`trace`: what it records, where it says the call was, and what it forbids before a byte moves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from strategies import read_only

import ndtorch as nd

A = np.zeros(4)


def line() -> int:
    return sys._getframe(1).f_lineno


def test_every_conversion_is_recorded_with_its_bytes_and_reason() -> None:
    with nd.trace() as seen:
        nd.to_torch(A)
        nd.to_torch(A[::-1])
        nd.to_numpy(torch.zeros(2))
        nd.to_numpy(torch.zeros(2), dtype="float64")
        nd.to_torch(A, copy=True)
    facts = [(r.function, r.source, r.shared, r.nbytes_shared, r.nbytes_copied) for r in seen]
    assert facts == [
        ("to_torch", "f64[4](numpy)", True, 32, 0),
        ("to_torch", "f64[4](numpy)", False, 0, 32),
        ("to_numpy", "f32[2](torch)", True, 8, 0),
        ("to_numpy", "f32[2](torch)", False, 0, 16),
        ("to_torch", "f64[4](numpy)", False, 0, 32),
    ]
    assert [bool(r.reason) for r in seen] == [not r.shared for r in seen]
    assert "negative stride" in seen[1].reason
    assert all(0 <= r.seconds < 60 for r in seen)
    assert (seen.nbytes_shared, seen.nbytes_copied, len(seen)) == (40, 80, 5)
    assert [r.nbytes_copied for r in seen[1:3]] == [32, 0]


def test_call_site_is_the_callers_line() -> None:
    with nd.trace() as seen:
        here = line() + 1
        nd.to_torch(A)
        nd.to_torch({"x": [A]}, copy=True)
        nd.to_numpy(torch.zeros(1), like=np.zeros(1))
        list(map(nd.to_torch, [A]))
    assert [r.site for r in seen] == [f"test_trace.py:{here + i}" for i in range(4)]


def test_leaves_of_structures_fields_and_masks_are_recorded_by_path() -> None:
    fields = np.zeros(2, [("a", "i4"), ("b", [("c", "f4")])])
    with nd.trace() as seen:
        nd.to_torch({"x": [A, A[::-1]], "s": "text", "f": fields, "m": np.ma.array([1.0]), "n": [1, 2]}, masked="split")
    assert {r.path: r.shared for r in seen} == {
        "['x'][0]": True,
        "['x'][1]": False,
        "['f']['a']": True,
        "['f']['b']['c']": True,
        "['m'].data": True,
        "['n']": False,
    }
    assert len(seen) == 6
    with nd.trace() as seen:
        nd.to_numpy({"x": [torch.zeros(1)]}, like={"x": [np.zeros(1, np.float32)]})
        nd.to_numpy(torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged))
    assert [(r.path, r.shared) for r in seen] == [("['x'][0]", True), ("[0]", True)]


@pytest.mark.parametrize(
    ("source", "options", "nbytes"),
    [
        ([1, 2, 3], {}, 24),
        ([1.5, 2.5], {"dtype": "float64"}, 16),
        (2.5, {}, 4),
        (np.array([1, 2], object), {}, 16),
        (np.array([1, 2], object), {"dtype": "int8"}, 2),
        (np.broadcast_to(np.zeros(3), (5, 3)), {}, 24),
        (read_only(np.zeros(3)), {}, 24),
        (np.zeros(0)[::-1], {}, 0),
        (np.float32(1), {}, 4),
    ],
    ids=repr,
)
def test_bytes_copied_are_those_of_the_result(source: Any, options: dict[str, Any], nbytes: int) -> None:
    with nd.trace() as seen:
        nd.to_torch(source, **options)
    assert [r.nbytes_copied for r in seen] == [nbytes]


def test_mapped_file_is_neither_shared_nor_copied(tmp_path: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros(5))
    with nd.trace(forbid_copies=True) as seen:
        nd.to_torch(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert [(r.shared, r.nbytes_shared, r.nbytes_copied) for r in seen] == [(False, 0, 0)]
    assert "mapped" in str(seen)


class Counted:
    """A number that counts how often it is read."""

    reads = 0

    def __index__(self) -> int:
        Counted.reads += 1
        return 1

    __float__ = __index__


@pytest.mark.parametrize(
    "call",
    [
        lambda: nd.to_torch(A[::-1]),
        lambda: nd.to_torch(A, dtype="float32"),
        lambda: nd.to_torch([1, 2]),
        lambda: nd.to_torch(2.5),
        lambda: nd.to_torch(np.array([1, 2], object)),
        lambda: nd.to_torch(np.array([Counted()], object)),
        lambda: nd.to_torch({"x": [A, read_only(np.zeros(2))]}),
        lambda: nd.to_torch(np.zeros(2, [("a", "i1"), ("b", "f8")])),
        lambda: nd.to_numpy(torch.zeros(2), copy=True),
        lambda: nd.to_numpy([torch.zeros(2)], like=[np.zeros(2, "f8")]),
        lambda: nd.to_numpy([1, 2]),
        lambda: nd.to_numpy(torch.ones(1, dtype=torch.cfloat).conj()),
    ],
)
def test_forbidden_copy_is_refused_before_a_byte_moves(call: Callable[[], Any], monkeypatch: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a copy was started")

    monkeypatch.setattr(np, "copyto", refuse)
    monkeypatch.setattr(torch, "tensor", refuse)
    Counted.reads = 0
    with nd.trace(forbid_copies=True) as seen, pytest.raises(nd.CopyRequiredError, match="forbid_copies") as caught:
        call()
    assert caught.value.reason
    assert Counted.reads == 0
    assert all(r.shared for r in seen)


def test_forbidden_copy_says_where_in_the_structure() -> None:
    with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError) as caught:
        nd.to_torch({"x": [A, A[::-1]]})
    assert caught.value.path == "['x'][1]"
    assert caught.value.__notes__ == ["at source['x'][1]"]


def test_shares_are_allowed_where_copies_are_forbidden() -> None:
    with nd.trace(forbid_copies=True) as seen:
        nd.to_torch({"a": A, "t": np.zeros(2, "M8[D]"), "s": "text", "e": np.zeros((0, 2))[:, ::-1]}, copy=False)
        nd.to_numpy([torch.zeros(2), torch.zeros(2, requires_grad=True)])
    assert [r.shared for r in seen] == [True] * 5


def test_nothing_is_recorded_outside_the_block() -> None:
    with nd.trace() as seen:
        nd.to_torch(A)
    nd.to_torch(A)
    nd.to_numpy(torch.zeros(1))
    nd.to_torch(A[::-1])
    assert len(seen) == 1


def test_traces_nest_and_each_sees_what_happens_inside_it() -> None:
    with nd.trace() as outer:
        nd.to_torch(A)
        with nd.trace() as inner:
            nd.to_torch([A, A])
        nd.to_torch(A)
    assert (len(outer), len(inner)) == (4, 2)
    with nd.trace(forbid_copies=True), nd.trace(), pytest.raises(nd.CopyRequiredError):
        nd.to_torch(A, copy=True)


def test_exception_closes_the_trace() -> None:
    seen = nd.trace()
    with pytest.raises(ZeroDivisionError), seen:
        nd.to_torch([A, A])[len(seen) // 0]
    nd.to_torch(A)
    with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError):
        nd.to_torch(A, copy=True)
    nd.to_torch(A, copy=True)
    assert len(seen) == 2


def test_failed_conversion_is_not_recorded() -> None:
    with nd.trace() as seen:
        with pytest.raises(nd.LossyCastError):
            nd.to_torch(np.array([0.5]), dtype="int32", casting="exact")
        with pytest.raises(nd.UnsupportedTypeError):
            nd.to_torch(np.ma.array([1]))
    assert list(seen) == []


def test_explain_is_no_conversion() -> None:
    with nd.trace(forbid_copies=True) as seen:
        nd.explain(A[::-1])
        nd.explain([1, 2.5])
    assert len(seen) == 0


def test_threads_do_not_see_or_forbid_each_others_conversions() -> None:
    ready, done = threading.Event(), threading.Event()
    counts: list[int] = []

    def other() -> None:
        ready.wait(120)
        nd.to_torch(A[::-1])
        with nd.trace() as seen:
            nd.to_torch([A, A])
        counts.append(len(seen))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with nd.trace(forbid_copies=True) as seen:
        ready.set()
        assert done.wait(120)
        nd.to_torch(A)
    thread.join()
    assert (counts, len(seen)) == ([2], 1)


def test_table_has_one_line_per_conversion_and_a_total() -> None:
    with nd.trace() as seen:
        here = line() + 1
        nd.to_torch({"x": A, "y": A[::-1]})
    title, first, second, total = str(seen).splitlines()
    assert title.split("  ")[0] == "call site"
    assert title.split()[-1] == "why"
    assert first.split()[:5] == [f"test_trace.py:{here}", "to_torch", "f64[4](numpy)", "at", "['x']"]
    assert " shared " in first
    assert " copied " in second
    assert second.endswith("axis 0 has a negative stride (-8 bytes)")
    assert title.index("memory") == first.index("shared") == second.index("copied")
    assert total == "2 conversions, 32 bytes shared, 32 bytes copied"
    assert repr(seen) == "<trace of 2 conversions>"


def test_trace_is_a_sequence_of_plain_records() -> None:
    with nd.trace() as seen:
        nd.to_torch([A, A])
    first, second = seen
    assert first == seen[0]
    assert seen[-1] == second
    assert first in seen
    assert list(reversed(seen)) == [second, first]


def test_trace_sees_stacks_and_pictures_and_can_forbid_them():
    rows, pixels = [np.zeros(3), np.ones(3)], np.zeros((4, 5, 3), np.uint8)
    with nd.trace() as seen:
        planes = nd.image_to_torch(pixels)
        nd.stack(rows)
        nd.stack(iter(rows), pad_value=0)
        nd.image_to_numpy(planes)
    copied = [(r.function, r.source, r.nbytes_copied) for r in seen if r.function not in ("to_torch", "to_numpy")]
    assert copied == [
        ("image_to_torch", "u8[4,5,3](numpy)", 240),
        ("stack", "2 arrays", 48),
        ("stack", "2 arrays", 48),
        ("image_to_numpy", "f32[3,4,5](torch)", 60),
    ]
    assert all(r.site.startswith("test_trace.py:") for r in seen)
    for call in (lambda: nd.stack(rows), lambda: nd.image_to_torch(pixels), lambda: nd.image_to_numpy(planes)):
        with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError, match="forbid_copies"):
            call()
