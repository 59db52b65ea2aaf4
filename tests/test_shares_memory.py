"""`shares_memory` against `np.shares_memory`, which solves the same question exactly for arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comparison import array_holding
from hypothesis import given, settings
from numpy.lib.stride_tricks import as_strided
from strategies import overlapping, tensors

import ndtorch as nd

BUFFER = np.zeros(400, np.uint8)


def over(array: np.ndarray) -> torch.Tensor | None:
    """The tensor over exactly the bytes of an array, where torch can describe them."""
    strides = [s // array.itemsize for s in array.strides]
    if not array.size or any(s < 0 or s % array.itemsize for s in array.strides) or not array.flags.aligned:
        return None
    code = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[array.itemsize]
    start = array.__array_interface__["data"][0]
    whole = torch.frombuffer(BUFFER, dtype=torch.uint8)
    skip = start - whole.data_ptr()
    usable = (len(BUFFER) - skip) // array.itemsize * array.itemsize
    return whole[skip : skip + usable].view(code).as_strided(array.shape, strides, skip // array.itemsize)


@settings(max_examples=600)
@given(overlapping(BUFFER), overlapping(BUFFER))
def test_answer_is_exact_for_any_strides_sizes_and_libraries(a: np.ndarray, b: np.ndarray) -> None:
    expected = np.shares_memory(a, b)
    for left in filter(lambda x: x is not None, (a, over(a))):
        for right in filter(lambda x: x is not None, (b, over(b))):
            assert nd.shares_memory(left, right) is expected
            assert nd.shares_memory(right, left) is expected


def test_generated_pairs_include_both_answers_and_both_libraries() -> None:
    seen: set[tuple[bool, bool]] = set()

    @settings(max_examples=300)
    @given(overlapping(BUFFER), overlapping(BUFFER))
    def look(a: np.ndarray, b: np.ndarray) -> None:
        seen.add((bool(np.shares_memory(a, b)), over(a) is not None))

    look()
    assert len(seen) == 4


@given(tensors(), tensors())
def test_separate_tensors_share_nothing_and_each_shares_with_itself(a: torch.Tensor, b: torch.Tensor) -> None:
    assert not nd.shares_memory(a, b)
    assert nd.shares_memory(a, a) is (a.numel() > 0)
    assert not nd.shares_memory(a, array_holding(a))
    assert nd.shares_memory(a, a.detach()) is (a.numel() > 0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (slice(None, None, 2), slice(1, None, 2), False),
        (slice(None, None, 2), slice(2, None, 2), True),
        (slice(None, None, -1), slice(0, 1), True),
        (slice(0, 5), slice(5, None), False),
        (slice(0, 5), slice(4, None), True),
        (slice(0, 0), slice(None), False),
        (slice(None, None, 3), slice(1, None, 3), False),
    ],
)
def test_interleaved_and_adjacent_views_are_told_apart(first: slice, second: slice, expected: bool) -> None:
    array = np.arange(12.0)
    pairs = [(array[first], array[second])]
    if (first.step or 1) > 0:
        tensor = torch.from_numpy(array)
        pairs += [(tensor[first], array[second]), (tensor[first], tensor[second])]
    assert [nd.shares_memory(a, b) for a, b in pairs] == [expected] * len(pairs)


def test_time_text_fields_and_masks_are_seen() -> None:
    days, text = np.array(["2024-01-01"], "M8[D]"), np.array(["ab"])
    fields, masked = np.zeros(3, [("a", "i4"), ("b", "f4")]), np.ma.array([1.0, 2.0], mask=[0, 1])
    assert nd.shares_memory(days, torch.from_numpy(days.view(np.int64)))
    assert nd.shares_memory(text, torch.from_numpy(text.view(np.int32)))
    assert nd.shares_memory(fields, torch.from_numpy(fields["b"]))
    assert not nd.shares_memory(fields["a"], torch.from_numpy(fields["b"]))
    assert nd.shares_memory(masked, torch.from_numpy(masked.mask))
    assert nd.shares_memory(masked, torch.from_numpy(masked.data))
    assert not nd.shares_memory(np.ma.array(masked.data, mask=[0, 0]).mask, masked.mask)


def test_complex_parts_and_lazy_views_are_compared_where_they_lie() -> None:
    tensor = torch.tensor([1 + 2j, 3 + 4j])
    assert nd.shares_memory(tensor, tensor.conj())
    assert not nd.shares_memory(tensor.real, tensor.imag)
    assert nd.shares_memory(tensor.conj().imag, tensor.numpy())
    assert nd.shares_memory(torch.ones(1).expand(3), torch.ones(3)) is False


def test_structures_share_when_any_leaf_does() -> None:
    array = np.arange(4.0)
    assert nd.shares_memory({"x": [np.ones(2), array]}, (torch.from_numpy(array), "text", None))
    assert not nd.shares_memory({"x": [np.ones(2), array[:2]]}, [torch.from_numpy(array)[2:]])
    assert not nd.shares_memory([], [array])
    assert nd.shares_memory(torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), array) is False


def test_numbers_and_scalars_have_no_memory_and_objects_are_refused() -> None:
    assert nd.shares_memory(3, [1, 2]) is False
    assert nd.shares_memory(np.float32(1), np.ones(1)) is False
    for value in ("text", None, object()):
        with pytest.raises(nd.UnsupportedTypeError):
            nd.shares_memory(value, np.ones(1))


def test_other_devices_never_overlap_the_cpu() -> None:
    array = np.ones(3)
    for other in (torch.ones(3, device="meta"), torch.ones(0)):
        assert nd.shares_memory(array, other) is False
        assert nd.shares_memory(other, other) is False


@pytest.mark.cuda
def test_views_on_a_gpu_are_compared_exactly() -> None:
    tensor = torch.zeros(10, device="cuda")
    assert nd.shares_memory(tensor[::2], tensor[2:])
    assert not nd.shares_memory(tensor[::2], tensor[1::2])
    assert not nd.shares_memory(tensor, tensor.cpu())


def test_tensor_without_plain_memory_is_refused() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="cannot compare"):
        nd.shares_memory(torch._efficientzerotensor(3), np.ones(2))


def test_far_reaching_strides_are_compared_without_reading() -> None:
    array = np.ones(4)
    far = as_strided(array, (2,), (2**40,))
    assert nd.shares_memory(far, array)
    assert not nd.shares_memory(far, array[1:])
