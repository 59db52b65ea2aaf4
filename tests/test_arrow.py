"""Arrow's C data interface: anyone who speaks it, and any column against what Arrow itself says it holds."""

from __future__ import annotations

import random
from typing import Any

import pytest
from columns import as_lists

import ndtorch as nd

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

NUMBERS = (
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
)


# ---- anyone who speaks Arrow's interface ----


class ArrayOnly:
    def __init__(self, array: Any) -> None:
        self.array = array

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self.array.__arrow_c_array__(requested_schema)


class StreamOnly:
    def __init__(self, column: Any) -> None:
        self.column = column

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.column.__arrow_c_stream__(requested_schema)


def test_object_of_an_unknown_class_is_taken_through_arrows_interface():
    array = pa.array([1, None, 3])
    assert as_lists(nd.to_torch(ArrayOnly(array), masked="split")) == [1, None, 3]
    assert nd.to_torch(ArrayOnly(array.slice(2)), readonly="share").data_ptr() == array.buffers()[1].address + 16
    table = pa.table({"x": [1, 2], "y": [[1.5], []]})
    assert as_lists(nd.to_torch(StreamOnly(table))) == table.to_pylist()
    assert str(nd.explain(ArrayOnly(array)).source).endswith("(test_arrow.ArrayOnly)")


def test_codes_of_unknown_chunks_are_refused():
    chunks = pa.chunked_array([pa.array(words).dictionary_encode() for words in (["a"], ["b"])])
    with pytest.raises(nd.UnsupportedTypeError, match="one code may mean different things"):
        nd.to_torch(StreamOnly(chunks))


def test_stream_that_fails_is_refused_with_its_message():
    def batches() -> Any:
        raise OSError("the disk is gone")
        yield

    class Reader(StreamOnly):
        pass

    source = Reader(pa.RecordBatchReader.from_batches(pa.schema([("a", pa.int8())]), batches()))
    with pytest.raises(nd.UnsupportedTypeError, match="the disk is gone"):
        nd.to_torch(source)


# ---- against Arrow's own lists ----


def random_type(rng: random.Random, depth: int = 2) -> Any:
    flat = [*NUMBERS, pa.bool_(), pa.bool_(), pa.date32(), pa.duration("ms"), pa.binary(3)]
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(flat)
    inside = random_type(rng, depth - 1)
    return rng.choice(
        [
            pa.list_(inside),
            pa.large_list(inside),
            pa.list_(random_type(rng, 0) if pa.types.is_struct(inside) else inside, rng.randint(1, 3)),
            pa.struct([("a", inside), ("b", random_type(rng, depth - 1))]),
        ]
    )


def random_value(rng: random.Random, kind: Any, nulls: float) -> Any:
    if rng.random() < nulls:
        return None
    if pa.types.is_struct(kind):
        return {part.name: random_value(rng, part.type, nulls) for part in kind}
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else rng.randint(0, 3)
        return [random_value(rng, kind.value_type, nulls) for _ in range(length)]
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_floating(kind):
        return float(rng.randint(-8, 8)) / 4
    return rng.randbytes(3) if pa.types.is_fixed_size_binary(kind) else rng.randint(0, 100)


def in_numbers(value: Any, kind: Any) -> Any:
    """What Arrow says a value is, as the result has it: a missing row of n elements is n missing ones."""
    if pa.types.is_fixed_size_binary(kind):
        return [None] * kind.byte_width if value is None else list(value)
    if pa.types.is_fixed_size_list(kind):
        if value is None and not is_array(kind.value_type):
            return None
        rows = [None] * kind.list_size if value is None else value
        return [in_numbers(row, kind.value_type) for row in rows]
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {part.name: in_numbers(value[part.name], part.type) for part in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [in_numbers(row, kind.value_type) for row in value]
    if pa.types.is_date32(kind):
        return value.toordinal() - 719163
    return value // _MILLISECOND if pa.types.is_duration(kind) else value


_MILLISECOND = pa.scalar(1, pa.duration("ms")).as_py()


def is_array(kind: Any) -> bool:
    if pa.types.is_fixed_size_list(kind):
        return is_array(kind.value_type)
    return not (pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


@pytest.mark.parametrize("seed", range(150))
def test_any_column_holds_what_arrow_says_and_finds_the_way_back(seed):
    rng = random.Random(seed)
    kind = random_type(rng)
    nulls = rng.choice([0, 0.2, 0.6])
    values = [random_value(rng, kind, nulls) for _ in range(rng.randint(0, 20))]
    array: Any = pa.array(values, kind)
    start = rng.randint(0, len(array))
    array = array.slice(start, rng.randint(0, len(array) - start))
    if rng.random() < 0.4:
        cuts = sorted(rng.choices(range(len(array) + 1), k=2))
        array = pa.chunked_array(
            [array.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(array)], strict=True)], kind
        )
    before = array.to_pylist()
    expected = [in_numbers(value, kind) for value in before]
    for readonly in ("copy", "share"):
        result = nd.to_torch(array, masked="split", readonly=readonly)
        assert as_lists(result) == expected, kind
    assert len(as_lists(nd.to_numpy(array))) == len(expected)
    plan = nd.explain(array, masked="split")
    assert plan.error is None
    assert plan.shares == (plan.nbytes_copied == 0)
    back = nd.to_numpy(result, like=array)
    back.validate(full=True)
    assert back.type == kind
    assert [in_numbers(value, kind) for value in back.to_pylist()] == expected, kind
    assert array.to_pylist() == before
