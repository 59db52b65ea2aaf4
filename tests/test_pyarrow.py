"""Arrow's arrays, chunked arrays and tables: what they become, what they share, and the way back."""

from __future__ import annotations

import gc
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from columns import as_lists, tensors_in
from comparison import assert_independent, assert_same, assert_shares

import ndtorch as nd
from ndtorch.foreign import pyarrow as room

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

NUMBERS = {
    **{str(kind): kind for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(kind): kind for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}
TIMES = {  # type, NumPy's dtype for it, whether the memory is the same
    "date32": (pa.date32(), "M8[D]", False),
    "date64": (pa.date64(), "M8[ms]", True),
    "time32 s": (pa.time32("s"), "m8[s]", False),
    "time32 ms": (pa.time32("ms"), "m8[ms]", False),
    "time64 us": (pa.time64("us"), "m8[us]", True),
    "time64 ns": (pa.time64("ns"), "m8[ns]", True),
    **{f"timestamp {unit}": (pa.timestamp(unit), f"M8[{unit}]", True) for unit in ("s", "ms", "us", "ns")},
    "timestamp tz": (pa.timestamp("us", "Europe/Zurich"), "M8[us]", True),
    **{f"duration {unit}": (pa.duration(unit), f"m8[{unit}]", True) for unit in ("s", "ms", "us", "ns")},
}


def shared(source: Any, **options: Any) -> Any:
    return nd.to_torch(source, readonly="share", **options)


def address_of(array: Any, buffer: int = 1) -> int:
    return array.buffers()[buffer].address


# ---- numbers ----


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_shared_when_asked_and_copied_by_default_since_arrow_is_immutable(name):
    kind = NUMBERS[name]
    values = np.arange(5).astype(kind.to_pandas_dtype())
    array = pa.array(values).slice(1, 3)
    assert array.type == kind
    view = shared(array)
    assert_same(nd.to_numpy(view), values[1:4])
    assert view.data_ptr() == address_of(array) + values.itemsize
    assert_shares(view, values)  # pyarrow itself shares a NumPy array
    copy = nd.to_torch(array)
    assert_same(nd.to_numpy(copy), values[1:4])
    assert_independent(copy, values)


def test_plan_says_that_arrow_is_immutable_and_what_is_copied():
    array = pa.array([1, 2, 3])
    plan = nd.explain(array)
    assert (plan.shares, plan.nbytes_copied, plan.reason) == (False, 24, "it is read-only")
    assert str(plan.source) == "i64[3](pyarrow)"
    assert any("immutable" in note for note in plan.notes)
    assert nd.explain(array, readonly="share").shares
    with pytest.raises(nd.CopyRequiredError, match=re.escape("i64[3](pyarrow): it is read-only")):
        nd.to_torch(array, copy=False)


def test_array_over_arrow_memory_is_read_only():
    array = pa.array([1.0, 2.0])
    result = nd.to_numpy(array)
    assert_same(result, np.array([1.0, 2.0]))
    assert result.__array_interface__["data"][0] == address_of(array)
    assert not result.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        result.flags.writeable = True


def test_memory_lives_as_long_as_the_tensor():
    view = shared(pa.array(np.arange(100_000) * 3).slice(5))
    many = shared(pa.table({"x": pa.array([[1.5] * 1000] * 10)}))
    gc.collect()
    noise = [pa.array(np.zeros(100_000, np.int64) + i) for i in range(20)]
    assert view[-1].item() == 99_999 * 3
    assert all((row == 1.5).all() for row in many["x"])
    del noise


@pytest.mark.parametrize(
    ("options", "dtype"), [({"dtype": "float32"}, torch.float32), ({"device": "cpu"}, torch.int64)]
)
def test_options_apply(options, dtype):
    result = nd.to_torch({"x": [pa.array([1, 2])]}, **options)["x"][0]
    assert_same(result, torch.tensor([1, 2], dtype=dtype))


def test_float_dtype_leaves_integers_alone():
    result = nd.to_torch(pa.table({"i": [1], "f": [1.5]}), float_dtype="float32")
    assert_same(result, {"i": torch.tensor([1]), "f": torch.tensor([1.5])})


def test_exact_cast_names_the_value_that_is_lost():
    with pytest.raises(nd.LossyCastError) as caught:
        nd.to_torch(pa.array([1.0, 2.5]), dtype="int64", casting="exact")
    assert caught.value.index == (1,)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_trap_integers_with_a_missing_value_go_through_float64_in_numpy_and_lose_their_last_digits():
    big = 2**60 + 1
    array = pa.array([big, None])
    assert int(torch.from_numpy(np.asarray(array))[0]) == 2**60  # and nobody said so
    with pytest.raises(nd.UnsupportedTypeError, match="1 of its 2 values is missing, the first at index 1"):
        nd.to_torch(array)
    assert nd.to_torch(array, masked="split").data[0].item() == big


@pytest.mark.filterwarnings("ignore:Exporting an unversioned DLPack capsule")
def test_trap_torch_writes_into_arrows_immutable_memory_through_dlpack():
    array = pa.array([1, 2])
    torch.from_dlpack(array)[0] = 7
    assert array.to_pylist() == [7, 2]  # and every other array over this memory
    array = pa.array([1, 2])
    nd.to_torch(array)[0] = 7
    assert array.to_pylist() == [1, 2]


# ---- booleans ----


@pytest.mark.parametrize("start", range(9))
def test_booleans_are_unpacked_from_any_bit_on(start):
    values = [bool(int(bit)) for bit in f"{0xC0FFEE:024b}"]
    array = pa.array(values).slice(start, 11)
    assert_same(nd.to_torch(array), torch.tensor(values[start : start + 11]))
    plan = nd.explain(array)
    assert (plan.reason, plan.nbytes_copied, plan.dtype) == ("its booleans are packed bits", 11, "bool")
    with pytest.raises(nd.CopyRequiredError, match="its booleans are packed bits"):
        nd.to_torch(array, copy=False)


def test_booleans_of_one_byte_are_true_unless_zero():
    array = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0, -3], pa.int8()))
    assert as_lists(nd.to_torch(array, masked="split")) == [True, None, False, True]


# ---- times ----


@pytest.mark.parametrize("name", TIMES)
def test_times_are_int64_in_their_own_unit(name):
    kind, dtype, is_shared = TIMES[name]
    scale = 86_400_000 if name == "date64" else 1
    numbers = np.array([0, 5 * scale, scale], np.int64)
    narrow = numbers.astype(f"i{kind.bit_width // 8}")
    array = pa.Array.from_buffers(kind, 3, [None, pa.py_buffer(narrow)])
    assert_same(nd.to_torch(array), torch.from_numpy(numbers.copy()))
    assert_same(nd.to_numpy(array), numbers.view(dtype))
    assert nd.explain(array, readonly="share").shares == is_shared
    assert not is_shared or shared(array).data_ptr() == address_of(array)
    assert nd.explain(array, readonly="share").nbytes_copied == (0 if is_shared else 24)
    assert nd.to_numpy(nd.to_torch(array), like=array).equals(array)


def test_zone_of_a_timestamp_is_a_note_and_its_times_stay_utc():
    array = pa.array([0], pa.timestamp("s", "Europe/Zurich"))
    assert nd.explain(array).notes == ("its times are UTC, for the zone Europe/Zurich",)
    assert nd.to_torch(array).tolist() == [0]


def test_missing_time_becomes_nat_when_asked():
    array = pa.array([7, None], pa.timestamp("us"))
    assert_same(nd.to_torch(array, masked="nan"), torch.tensor([7, -(2**63)]))


# ---- missing values ----


def test_missing_values_are_an_error_unless_asked_for():
    array = pa.array([1, None, 3, None])
    with pytest.raises(nd.UnsupportedTypeError, match="2 of its 4 values are missing, the first at index 1"):
        nd.to_torch(array)
    split = nd.to_torch(array, masked="split")
    assert_same(split, nd.Masked(split.data, torch.tensor([False, True, False, True])))
    assert split.data[[0, 2]].tolist() == [1, 3]
    filled = nd.to_torch(array, masked="nan")
    assert_same(filled, torch.tensor([1, float("nan"), 3, float("nan")], dtype=torch.float64))
    kept = nd.to_torch(pa.array([1.5, None], pa.float32()), masked="nan")
    assert_same(kept, torch.tensor([1.5, float("nan")]))


def test_data_behind_nulls_is_shared_and_the_mask_is_unpacked():
    array = pa.array([1, None, 3, None, 5]).slice(1)
    split = shared(array, masked="split")
    assert split.data.data_ptr() == address_of(array) + 8
    plan = nd.explain(array, readonly="share", masked="split")
    assert (plan.leaves[".data"].shares, plan.leaves[".mask"].reason) == (True, "its mask is packed bits")
    assert plan.nbytes_copied == 4
    assert split.mask.tolist() == [True, False, True, False]


def test_column_without_nulls_is_a_plain_tensor_even_where_it_has_a_mask():
    array = pa.array([None, 1, 2]).slice(1)
    assert array.buffers()[0] is not None
    assert_same(nd.to_torch(array), torch.tensor([1, 2]))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 64, 65])
@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
def test_first_missing_value_is_named_at_every_bit(start, length):
    for missing in {0, length // 2, length - 1}:
        values = [None] * start + [None if i == missing else i for i in range(length)] + [None] * 3
        array = pa.array(values, pa.int32()).slice(start, length)
        facts = str(nd.explain(array).error)
        assert f"1 of its {length} values is missing, the first at index {missing}." in facts
        assert as_lists(nd.to_torch(array, masked="split")) == array.to_pylist()


def test_all_missing_and_empty():
    assert as_lists(nd.to_torch(pa.nulls(3, pa.int16()), masked="split")) == [None] * 3
    for kind in (pa.int8(), pa.bool_(), pa.date32(), pa.binary(3), pa.dictionary(pa.int8(), pa.string())):
        array = pa.array([], kind)
        assert len(nd.to_torch(array)) == 0
        assert nd.to_numpy(nd.to_torch(array), like=array).equals(array)
    assert nd.to_torch(pa.array([], pa.list_(pa.int8()))) == []
    assert nd.to_torch(pa.table({})) == {}
    assert_same(nd.to_torch(pa.table({"x": pa.array([], pa.float32())})), {"x": torch.empty(0)})


def test_masked_array_is_numpys():
    result = nd.to_numpy(pa.array([1, None], pa.int32()))
    assert_same(result, np.ma.MaskedArray(np.array([1, 0], np.int32), mask=[False, True]))


# ---- codes ----


def test_dictionary_becomes_its_codes():
    array = pa.array(["b", None, "a", "b"]).dictionary_encode()
    split = shared(array, masked="split")
    assert as_lists(split) == array.indices.to_pylist()
    assert split.data.data_ptr() == address_of(array.indices)
    assert nd.explain(array.slice(2)).notes == ("these are the codes of source.dictionary",)


def test_chunks_with_dictionaries_of_their_own_get_one_code_per_value():
    chunks = pa.chunked_array([pa.array(words).dictionary_encode() for words in (["a", "b"], ["c", "b"], ["a", None])])
    result = nd.to_torch(chunks, masked="split")
    words = chunks.unify_dictionaries().chunk(0).dictionary.to_pylist()
    assert [None if code is None else words[code] for code in as_lists(result)] == chunks.to_pylist()
    assert nd.to_numpy(result, like=chunks).to_pylist() == chunks.to_pylist()


def test_code_of_a_missing_entry_is_missing():
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1, 0], pa.int8()), pa.array(["a", None]))
    result = nd.to_torch(array, masked="split")
    assert as_lists(result) == [0, None, None, None, 0]


# ---- nested ----


def test_lists_share_one_content():
    array = pa.array([[1, 2], [], [3, 4, 5], [6]]).slice(1)
    rows = shared(array)
    assert [row.tolist() for row in rows] == [[], [3, 4, 5], [6]]
    assert rows[1].data_ptr() == address_of(array.values) + 16
    assert_shares(rows[1], nd.to_numpy(array.values))
    large = array.cast(pa.large_list(pa.int64()))
    assert_same(nd.to_torch(large), [row.clone() for row in rows])


def test_rows_of_one_length_are_one_more_dimension():
    kind = pa.list_(pa.list_(pa.int16(), 2), 3)
    values = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    array = pa.array(values.tolist(), kind).slice(1)
    view = shared(array)
    assert_same(nd.to_numpy(view), values[1:])
    assert view.data_ptr() == address_of(array.values.values) + 12


def test_missing_row_is_missing_in_every_element():
    array = pa.array([[1, 2], None, [None, 4]], pa.list_(pa.int32(), 2))
    assert as_lists(nd.to_torch(array, masked="split")) == [[1, 2], [None, None], [None, 4]]
    with pytest.raises(
        nd.UnsupportedTypeError, match=re.escape("3 of its 6 values are missing, the first at index (1, 0)")
    ):
        nd.to_torch(array)


def test_struct_is_a_table_and_a_missing_row_is_in_the_mask():
    array = pa.array([{"x": 1, "y": [1.5]}, None, {"x": None, "y": []}])
    result = nd.to_torch(array, masked="split")
    assert result.mask.tolist() == [False, True, False]
    assert as_lists(result) == array.to_pylist()


def test_rows_of_structs_are_a_table_of_rows():
    kind = pa.list_(pa.struct([("x", pa.int8()), ("y", pa.list_(pa.int8()))]), 2)
    array = pa.array([[{"x": 1, "y": [5]}, {"x": 2, "y": []}], [{"x": 3, "y": [6, 7]}, {"x": 4, "y": [8]}]], kind)
    result = nd.to_torch(array)
    assert as_lists(result["x"]) == [[1, 2], [3, 4]]
    assert as_lists(result["y"]) == [[[5], []], [[6, 7], [8]]]
    assert nd.to_numpy(result, like=array).equals(array)
    missing = pa.array([array[0].as_py(), None], kind)
    split = nd.to_torch(missing, masked="split")
    assert split.mask.tolist() == [[False, False], [True, True]]
    assert nd.to_numpy(split, like=missing).to_pylist() == missing.to_pylist()


def test_bytes_of_one_length_are_uint8():
    array = pa.array([b"ab", None, b"cd"], pa.binary(2)).slice(1)
    assert_same(shared(array.slice(1)), torch.tensor([[99, 100]], dtype=torch.uint8))
    assert as_lists(nd.to_torch(array, masked="split")) == [[None, None], [99, 100]]


def test_map_is_a_list_of_tables():
    array = pa.array([[(1, 2.5), (3, 4.5)], None, []], pa.map_(pa.int32(), pa.float64()))
    rows = [None if row is None else [{"key": k, "value": v} for k, v in row] for row in array.to_pylist()]
    assert as_lists(nd.to_torch(array, masked="split")) == rows


@pytest.mark.parametrize("kind", [pa.list_view(pa.int32()), pa.large_list_view(pa.int32())])
def test_list_view_is_a_list_where_its_lists_lie_in_order(kind):
    array = pa.array([[1, 2], [], [3]], kind)
    assert as_lists(nd.to_torch(array)) == array.to_pylist()
    mixed = type(array).from_arrays([2, 0], [1, 2], pa.array([1, 2, 3], pa.int32()), type=kind)
    with pytest.raises(nd.UnsupportedTypeError, match="do not lie one after the other"):
        nd.to_torch(mixed)
    in_order = pa.array(mixed.to_pylist(), pa.list_(mixed.type.value_type))  # pyarrow 26 casts it to an invalid array
    assert as_lists(nd.to_torch(in_order)) == mixed.to_pylist()


@pytest.mark.parametrize("order", [None, [1, 0, 2], [2, 0, 1]])
def test_rows_of_tensors_are_one_tensor_with_the_dimensions_in_their_order(order):
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3, 4], permutation=order)
    values = np.arange(72, dtype=np.float32)
    array = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(pa.array(values), 24)).slice(1)
    view = shared(array)
    # Arrow's own example: shape [100, 200, 500] with permutation [2, 0, 1] is [500, 100, 200].
    # pyarrow 26 mixes the values up where the permutation is not its own inverse.
    axes = [0, *(axis + 1 for axis in order or range(3))]
    assert_same(nd.to_numpy(view), values.reshape(3, 2, 3, 4)[1:].transpose(axes))
    assert_shares(view, values)
    assert nd.to_numpy(view, like=array).equals(array)


def test_missing_tensor_in_rows_of_tensors():
    storage = pa.array([[1, 2], None], pa.list_(pa.int32(), 2))
    array = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2]), storage)
    result = nd.to_torch(array, masked="split")
    assert as_lists(result) == [[1, 2], [None, None]]
    assert nd.to_numpy(result, like=array).equals(array)


def test_unknown_extension_is_its_storage_with_a_note():
    uuid = pa.array([b"0123456789abcdef"], pa.uuid())
    assert nd.to_torch(uuid).shape == (1, 16)
    assert nd.explain(uuid).notes == ("the storage of its type 'arrow.uuid'",)


# ---- chunks, tables, scalars, tensors ----


def test_chunks_are_joined_in_one_pass_and_one_chunk_is_shared():
    chunks = pa.chunked_array([[1, 2], [], [3]], pa.int64())
    plan = nd.explain(chunks)
    assert (plan.reason, plan.nbytes_copied) == ("it lies in 3 chunks", 24)
    assert_same(nd.to_torch(chunks), torch.tensor([1, 2, 3]))
    one = pa.chunked_array([[1, 2]])
    assert shared(one).data_ptr() == address_of(one.chunk(0))
    assert_same(nd.to_torch(pa.chunked_array([], pa.float32())), torch.empty(0))


def test_table_is_a_dict_and_names_the_column_of_an_error():
    table = pa.table({"age": [1, None], "ok": [True, False]})
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.to_torch({"people": table})
    assert caught.value.path == "['people']['age']"
    result = nd.to_torch(table, masked="split")
    assert list(result) == ["age", "ok"]
    assert as_lists(result) == table.to_pylist()
    batch = table.to_batches()[0].slice(1)
    assert as_lists(nd.to_torch(batch, masked="split")) == batch.to_pylist()
    assert list(nd.explain(table, masked="split").leaves) == ["['age']", "['ok']"]


def test_columns_of_one_name_are_refused():
    for source in (pa.table([[1], [2]], names=["a", "a"]), pa.StructArray.from_arrays([[1], [2]], ["a", "a"])):
        with pytest.raises(nd.UnsupportedTypeError, match="several of its columns are named 'a'"):
            nd.to_torch(source)


def test_scalars():
    assert_same(nd.to_torch(pa.scalar(3, pa.int8())), torch.tensor(3, dtype=torch.int8))
    assert_same(nd.to_torch(pa.scalar([1, 2])), torch.tensor([1, 2]))
    struct = pa.scalar({"a": 1, "b": [1.5]})
    assert_same(nd.to_torch(struct), {"a": torch.tensor(1), "b": torch.tensor([1.5], dtype=torch.float64)})
    for scalar in (pa.scalar(3, pa.int8()), pa.scalar([1, 2]), struct, pa.scalar(7, pa.timestamp("s"))):
        assert nd.to_numpy(nd.to_torch(scalar), like=scalar).equals(scalar)
    with pytest.raises(nd.UnsupportedTypeError, match="it is missing"):
        nd.to_torch(pa.scalar(None, pa.int8()))


@pytest.mark.parametrize("writeable", [True, False])
def test_tensor_is_shared_and_as_writable_as_its_memory(writeable):
    values = np.arange(6.0).reshape(2, 3)
    values.flags.writeable = writeable
    tensor = pa.Tensor.from_numpy(values, dim_names=["a", "b"])
    assert nd.explain(tensor).shares == writeable
    assert_same(nd.to_torch(tensor), torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    if writeable:
        assert_shares(nd.to_torch(tensor), values)
    back = nd.to_numpy(nd.to_torch(tensor), like=tensor)
    assert back.equals(tensor)
    assert back.dim_names == tensor.dim_names


# ---- refused ----


REFUSED = {
    "string": (pa.array(["a"]), "dictionary_encode"),
    "large string": (pa.array(["a"], pa.large_string()), "dictionary_encode"),
    "string view": (pa.array(["a"], pa.string_view()), "dictionary_encode"),
    "binary": (pa.array([b"a"]), "dictionary_encode"),
    "decimal": (pa.array([1], pa.decimal128(5, 1)), "cast('float64')"),
    "null": (pa.nulls(3), "cast('float64')"),
    "interval": (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "to_pylist()"),
    "union": (pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]), "field(i)"),
    "runs": (pa.RunEndEncodedArray.from_arrays([2], [1]), "run_end_decode"),
    "reader": (pa.RecordBatchReader.from_batches(pa.schema([("a", pa.int8())]), []), "read_all()"),
    "list of strings": (pa.array([["a"]]), "dictionary_encode"),
    "sparse": (pa.SparseCOOTensor.from_dense_numpy(np.eye(2)), "to_tensor()"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_with_the_call_that_helps(name):
    source, hint = REFUSED[name]
    for convert in (nd.to_torch, nd.to_numpy):
        with pytest.raises(nd.UnsupportedTypeError) as caught:
            convert(source)
        assert hint in caught.value.hint
    assert not nd.explain(source).shares


def test_hints_work():
    assert nd.to_torch(REFUSED["string"][0].dictionary_encode()).tolist() == [0]
    assert nd.to_torch(pa.array([b"ab"]).cast(pa.binary(2))).tolist() == [[97, 98]]
    assert nd.to_torch(REFUSED["decimal"][0].cast("float64")).tolist() == [1.0]
    assert nd.to_torch(REFUSED["null"][0].cast("float64"), masked="split").mask.all()
    assert nd.to_torch(pytest.importorskip("pyarrow.compute").run_end_decode(REFUSED["runs"][0])).tolist() == [1, 1]
    assert nd.to_torch(REFUSED["union"][0].field(0)).tolist() == [1]


def test_memory_of_another_device_is_refused():
    class Elsewhere(SimpleNamespace):
        def __len__(self) -> int:
            return 3

    refused = room.take(Elsewhere(is_cpu=False, type="int64"), None)
    assert "not in the memory of the CPU" in refused.fact
    assert "copy_to" in refused.hint


@pytest.mark.parametrize("offsets", [[0, 400], [-8, 2], [3, 1]])
def test_offsets_that_point_outside_are_refused_and_not_followed(offsets):
    memory = np.array([0, 3], np.int32)
    content = pa.array([1, 2, 3])
    array = pa.Array.from_buffers(pa.list_(pa.int64()), 1, [None, pa.py_buffer(memory)], children=[content])
    memory[:] = offsets  # pyarrow has checked them before
    with pytest.raises(nd.UnsupportedTypeError, match="of an array of 3"):
        nd.to_torch(array)


# ---- the way back ----


def test_way_back_shares_memory_and_keeps_names_types_and_metadata():
    schema = pa.schema([pa.field("x", pa.float32(), metadata={"unit": "m"}), ("day", pa.date32())], metadata={"a": "b"})
    table = pa.table({"x": [1.5, None], "day": [1, 2]}, schema=schema)
    result = nd.to_torch(table, masked="split")
    back = nd.to_numpy(result, like=table)
    assert back.equals(table, check_metadata=True)
    assert address_of(back["x"].chunk(0)) == result["x"].data.data_ptr()
    longer = nd.to_numpy({"x": torch.zeros(5), "day": torch.arange(5)}, like=table)
    assert (longer.num_rows, longer.schema) == (5, schema)


@pytest.mark.parametrize(
    ("source", "like", "message"),
    [
        ({"y": torch.zeros(1)}, pa.table({"x": [1]}), "other columns"),
        (torch.zeros(1), pa.table({"x": [1]}), "other columns"),
        (torch.zeros(2, 3), pa.array([[1, 2]], pa.list_(pa.int64(), 2)), re.escape("(n, 2)")),
        (torch.zeros(2, 3), pa.array([1.5]), "1 dimension"),
        (torch.tensor([2**40]), pa.array([1], pa.date32()), "does not fit"),
        (torch.zeros(2), pa.array(["a"]), "like= cannot be of type string"),
    ],
)
def test_way_back_names_what_does_not_fit(source, like, message):
    with pytest.raises(nd.NdtorchError, match=message):
        nd.to_numpy(source, like=like)


def test_result_over_the_whole_table_is_independent_by_default():
    table = pa.table({"x": np.arange(4.0), "y": [[1, 2], [], [3], [4]]})
    for tensor in tensors_in(nd.to_torch(table)):
        tensor.zero_()
    assert table.to_pylist()[3] == {"x": 3.0, "y": [4]}


def test_wrapped_array_is_arrows():
    like = pa.array([1, 2])
    assert room.wrap(np.array([1.5, 2.5]), like).equals(pa.array([1.5, 2.5]))
    assert isinstance(room.wrap(np.array([1.5]), pa.chunked_array([like])), pa.ChunkedArray)
    assert isinstance(room.wrap(np.zeros((2, 2)), like), np.ndarray)
