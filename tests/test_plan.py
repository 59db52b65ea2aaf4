"""`explain`: the plan says beforehand what the call then does, refuses and copies; as data, text and picture."""

from __future__ import annotations

import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from decimal import Decimal
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from comparison import byte_addresses
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arrays, filled, read_only, tensors

import ndtorch as nd

FIELDS = np.zeros(2, [("a", "i1"), ("b", "f8"), ("c", [("d", "M8[s]"), ("e", "S2")])])


def objects(*elements: Any) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def quietly(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    with warnings.catch_warnings():  # torch says once that sparse layouts are in beta
        warnings.simplefilter("ignore")
        return make()


ODD: dict[str, Any] = {
    "number": 3,
    "NumPy scalar": np.float32(1.5),
    "list of numbers": [[1, 2.5], [3, 4]],
    "list too large for 64 bits": [2**70],
    "empty list": [],
    "text": "text",
    "nothing": None,
    "a set": {1},
    "time": np.array(["2024-01-01", "NaT"], "M8[D]"),
    "swapped time": np.arange(3).astype(">i8").view(">m8[s]"),
    "array of text": np.array(["ab", "c"]),
    "array of bytes": np.array([b"ab", b"c"]),
    "characters": torch.tensor([[97, 98, 0], [99, 0, 0]], dtype=torch.uint8),
    "scattered characters": torch.tensor([[97, 0, 98, 0]], dtype=torch.uint8)[:, ::2],
    "fields": FIELDS,
    "void": np.zeros(2, "V3"),
    "text of varying length": np.array(["a"], np.dtypes.StringDType()),
    "masked": np.ma.array([1.5, 2], mask=[0, 1]),
    "masked, nothing missing": np.ma.array([1.5, 2]),
    "masked fields": np.ma.array([(1, 2.0)], mask=[(1, 0)], dtype=[("a", "i4"), ("b", "f8")]),
    "long double": np.array([1, 2.5], np.longdouble),
    "objects that are numbers": objects(1, 2.5, True),
    "objects that are arrays": objects(np.zeros(2), np.ones(2)),
    "objects that are ragged": objects(np.zeros(2), np.ones(3)),
    "objects that are neither": objects(1, None),
    "objects that are inexact": objects(0.5, 2**53 + 1),
    "no objects": objects(),
    "broadcast": np.broadcast_to(np.arange(3.0), (4, 3)),
    "read-only": read_only(filled("f4")),
    "sparse": torch.eye(2).to_sparse(),
    "sparse that requires grad": quietly(lambda: torch.eye(2).to_sparse_csr().requires_grad_()),
    "sparse of halves": quietly(lambda: torch.eye(2).half().to_sparse_csc()),
    "sparse and batched": quietly(lambda: torch.eye(2).expand(2, 2, 2).to_sparse_csr()),
    "meta": torch.ones(2, device="meta"),
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "float4": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "dict": {"a": np.zeros(2), "b": [np.zeros(2)[::-1], "text", None, 3], "c": (torch.ones(2), [1, 2])},
    "dict with a bad leaf": {"a": np.zeros(2), "b": [Decimal(1), np.ma.array([1])]},
    "empty dict": {},
}

COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
}
DTYPE = st.sampled_from([None, None, None, "float32", "float64", "bfloat16", "int32", "uint8", "complex64", "bool"])
COPY = st.sampled_from([None, None, False, True])
CASTING = st.sampled_from(["same_kind", "same_kind", "no", "equiv", "safe", "unsafe", "exact"])
TORCH = st.fixed_dictionaries(
    {
        "dtype": DTYPE,
        "copy": COPY,
        "casting": CASTING,
        "readonly": st.sampled_from(["copy", "share", "error"]),
        "masked": st.sampled_from(["error", "split", "nan"]),
        "device": st.sampled_from([None, None, "cpu", "meta"]),
    }
)
NUMPY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([None, None, "f4", ">f8", "M8[s]", "S", "i4", "c16", "bfloat16"]),
        "copy": COPY,
        "casting": CASTING,
    }
)
FLOAT = st.fixed_dictionaries(
    {"float_dtype": st.sampled_from(["float32", "float16", "float64"]), "copy": COPY, "casting": CASTING}
)


def check(source: Any, to: str, options: dict[str, Any]) -> None:
    """Hold the plan against what the call then does."""
    plan = nd.explain(source, to=to, **options)
    assert plan.shares == (plan.reason == "")
    result, error = outcome(nd.to_torch if to == "torch" else nd.to_numpy, source, options)
    if plan.error is not None:
        assert (type(plan.error), str(plan.error)) == (type(error), str(error))
        assert getattr(plan.error, "__notes__", []) == getattr(error, "__notes__", [])
        return
    if error is not None:
        assert isinstance(error, nd.LossyCastError), f"not planned: {error!r}"
        assert options["casting"] == "exact", f"not planned: {error!r}"
        assert "would become" in str(error), f"not planned: {error!r}"
        return
    if isinstance(result, torch.Tensor) and (result.is_nested or result.layout is not torch.strided):
        assert plan.shares == (result is source)  # only torch knows their sizes
        return
    inputs, results = leaves_of(source), leaves_of(result)
    if isinstance(source, np.ma.MaskedArray) and source.mask is np.ma.nomask:
        results = leaves_of(result[0] if isinstance(result, tuple) else result)[:1]  # there is no mask to share or copy
    if isinstance(result, np.ndarray | torch.Tensor):
        assert (plan.dtype, plan.shape) == (name_of(result), tuple(result.shape))
    fresh = [y for y in results if y.nbytes and not any(same_memory(x, y) for x in inputs)]
    if any(y.nbytes for y in results):
        assert plan.shares == (not fresh)
    assert plan.nbytes_copied == sum(map(memory_of, fresh))


def outcome(convert: Callable[..., Any], source: Any, options: dict[str, Any]) -> tuple[Any, nd.NdtorchError | None]:
    try:
        return convert(source, **options), None
    except nd.NdtorchError as error:
        return None, error


def leaves_of(value: Any) -> list[Any]:
    """The arrays and tensors in a result, or whose memory a source has."""
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves_of(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves_of(part)]
    if isinstance(value, np.ma.MaskedArray):
        return [*leaves_of(value.data), *leaves_of(np.ma.getmask(value))]
    if isinstance(value, np.ndarray) and value.dtype.names:
        return [leaf for name in value.dtype.names for leaf in leaves_of(value[name])]
    if isinstance(value, torch.Tensor) and value.is_nested:
        return leaves_of(value.unbind())
    if hasattr(value, "tocsr"):
        return [
            *getattr(value, "coords", ()),
            *(vars(value)[k] for k in ("indptr", "indices", "data") if hasattr(value, k)),
        ]
    if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
        plain = value.detach()
        return (
            [plain._indices(), plain._values()]
            if value.is_sparse
            else [getattr(plain, name)() for name in COMPRESSED[value.layout]]
        )
    is_array = isinstance(value, np.ndarray) and value.ndim + value.size
    return [value] if is_array or isinstance(value, torch.Tensor) else []


def same_memory(x: Any, y: Any) -> bool:
    if x is y:
        return True
    if any(isinstance(z, torch.Tensor) and z.is_meta for z in (x, y)):
        return False
    if any(isinstance(z, np.ndarray) and z.dtype.hasobject for z in (x, y)):
        return False
    return bool(np.intersect1d(byte_addresses(x), byte_addresses(y)).size)


def memory_of(y: Any) -> int:
    """Bytes of memory behind a result: axes that are expanded count once."""
    strides = y.stride() if isinstance(y, torch.Tensor) else y.strides
    return int(np.prod([n if s or not n else 1 for n, s in zip(y.shape, strides, strict=True)], dtype=int)) * y.itemsize


def name_of(result: Any) -> str:
    return str(result.dtype).removeprefix("torch.") if isinstance(result, torch.Tensor) else result.dtype.name


@settings(max_examples=500)
@given(st.one_of(arrays(), tensors()), st.one_of(TORCH, FLOAT))
def test_plan_agrees_with_to_torch(source: Any, options: dict[str, Any]) -> None:
    check(source, "torch", options)


@settings(max_examples=500)
@given(st.one_of(tensors(), arrays()), st.one_of(NUMPY, FLOAT))
def test_plan_agrees_with_to_numpy(source: Any, options: dict[str, Any]) -> None:
    check(source, "numpy", options)


@pytest.mark.parametrize("name", ODD)
@settings(max_examples=40)
@given(torch_options=st.one_of(TORCH, FLOAT), numpy_options=st.one_of(NUMPY, FLOAT))
def test_plan_agrees_with_both_calls_for(
    name: str, torch_options: dict[str, Any], numpy_options: dict[str, Any]
) -> None:
    check(ODD[name], "torch", torch_options)
    check(ODD[name], "numpy", numpy_options)


@pytest.mark.parametrize("to", ["torch", "numpy"])
@pytest.mark.parametrize("name", ODD)
def test_plan_of_a_call_without_options_agrees_for(name: str, to: str) -> None:
    check(ODD[name], to, {"casting": "same_kind"})


def test_only_options_are_refused_by_explain() -> None:
    for options in ({"to": "jax"}, {"copy": "no"}, {"casting": "round"}, {"device": "nowhere"}, {"readonly": 1}):
        with pytest.raises(nd.InvalidOptionError):
            nd.explain(np.zeros(2), **options)


def test_plan_of_a_structure_has_the_plans_of_its_leaves() -> None:
    plan = nd.explain({"a": np.zeros(2), "b": [np.zeros(2)[::-1], "text"]})
    assert set(plan.leaves) == {"['a']", "['b'][0]"}
    assert (plan.shares, plan.nbytes_copied) == (False, 16)
    assert plan.reason.startswith("1 of 2 leaves, the first at ['b'][0]: axis 0 has a negative stride")
    assert nd.explain([np.zeros(2), np.zeros(3)]).shares


def test_planning_reads_no_element() -> None:
    far = np.lib.stride_tricks.as_strided(np.zeros(2), (3, 10**6), (2**50, 2**20), writeable=False)
    assert nd.explain(far, dtype="float32").nbytes_copied == 12 * 10**6
    assert nd.explain(far).reason == "it is read-only"


@pytest.mark.parametrize(
    ("source", "options", "note"),
    [
        (np.zeros(2, "u2"), {}, "dtype='int32'"),
        (np.zeros(2, "u4"), {}, "dtype='int64'"),
        (np.zeros(2, "u8"), {}, "dtype='float64'"),
        (read_only(np.zeros(2)), {"readonly": "share"}, "undefined"),
        (np.broadcast_to(0.0, 3), {}, "stay expanded"),
        (np.ma.array([1, 2]), {"masked": "split"}, "all False"),
        (torch.from_dlpack(torch.ones(2)), {"to": "numpy"}, "pytorch#51849"),
        (nd.to_torch(np.ones(2)).requires_grad_(), {"to": "numpy"}, "autograd"),
        (nd.to_torch(np.ones(1)).expand(3), {"to": "numpy"}, "one element stands for many"),
    ],
    ids=repr,
)
def test_plan_notes_what_else_there_is_to_know(source: Any, options: dict[str, Any], note: str) -> None:
    (text,) = nd.explain(source, **options).notes
    assert note in text
    assert f"\n  note: {text}" in str(nd.explain(source, **options))


def test_plan_of_nothing_special_notes_nothing() -> None:
    for source in (np.zeros(2), np.zeros(2, "u1"), np.zeros(2)[::-1], [1, 2]):
        assert nd.explain(source).notes == ()


# ---- text and picture ----

TEXT: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "shared": (lambda: np.zeros((3, 4)), {}, "f64[3,4](numpy) -> float64[3,4](torch)\n  memory: shared"),
    "copied": (
        lambda: np.zeros((3000, 4), "f4")[:, ::-1],
        {},
        """\
        f32[3000,4](numpy) -> float32[3000,4](torch)
          copied: 48,000 bytes
          reason: axis 1 has a negative stride (-4 bytes)""",
    ),
    "cast": (
        lambda: torch.zeros(2),
        {"to": "numpy", "dtype": "f8"},
        """\
        f32[2](torch) -> float64[2](numpy)
          copied: 16 bytes
          reason: float64 was asked for and it is f32""",
    ),
    "refused copy": (
        lambda: read_only(np.zeros(2)),
        {"copy": False},
        """\
        f64[2](numpy)
          raises: CopyRequiredError: to_torch: cannot share memory with f64[2](numpy): it is read-only. \
Hint: copy=None copies, readonly="share" insists.""",
    ),
    "refused type": (
        lambda: None,
        {},
        """\
        NoneType[](python)
          raises: UnsupportedTypeError: to_torch: cannot convert None; expected an array, a tensor, numbers, or a \
structure of them, got NoneType. Hint: leave it out; inside a structure None stays None.""",
    ),
    "noted": (
        lambda: torch.ones(2, requires_grad=True),
        {"to": "numpy"},
        """\
        f32[2](torch) -> float32[2](numpy)
          memory: shared
          note: the array is read-only: autograd could not see a write
          note: share_memory_() or a queue moves the tensor and leaves this array dangling (pytorch#51849)""",
    ),
    "structure": (
        lambda: {"x": np.zeros(2), "y": [np.zeros(2)[::-1]]},
        {},
        """\
        dict[2](python)
          copied: 16 bytes
          reason: 1 of 2 leaves, the first at ['y'][0]: axis 0 has a negative stride (-8 bytes)
          ['x']: f64[2](numpy) -> float64[2](torch)
            memory: shared
          ['y'][0]: f64[2](numpy) -> float64[2](torch)
            copied: 16 bytes
            reason: axis 0 has a negative stride (-8 bytes)""",
    ),
    "list": (
        lambda: [1, 2.5],
        {},
        """\
        list[2](python) -> float32[2](torch)
          copied: 8 bytes
          reason: a Python list has no array memory to share""",
    ),
    "text": (lambda: np.array(["ab"]), {}, "U2[1](numpy) -> int32[1,2](torch)\n  memory: shared"),
}


@pytest.mark.parametrize("name", TEXT)
def test_plan_prints_as_text(name: str) -> None:
    make, options, expected = TEXT[name]
    assert str(nd.explain(make(), **options)) == dedent(expected)


def test_private_mapping_prints_as_neither_shared_nor_copied(tmp_path: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    text = str(nd.explain(np.load(tmp_path / "a.npy", mmap_mode="r")))
    assert "memory: private mapping, nothing copied until written" in text
    assert "reason: it is read-only" in text


@pytest.mark.parametrize("name", [*ODD, *TEXT])
def test_picture_is_well_formed(name: str) -> None:
    source, options = (TEXT[name][0](), TEXT[name][1]) if name in TEXT else (ODD[name], {})
    for plan in (nd.explain(source, **options), nd.explain(source, **options | {"copy": True})):
        root = ET.fromstring(f"<html>{plan._repr_html_()}</html>")
        assert "".join(root.itertext()).count(str(plan.source)) >= 1


@settings(max_examples=60)
@given(arrays())
def test_picture_of_any_array_is_well_formed_and_small(array: np.ndarray) -> None:
    html = nd.explain(array)._repr_html_()
    ET.fromstring(f"<html>{html}</html>")
    assert len(html) < 20_000


def test_picture_escapes_what_the_source_brings_along() -> None:
    evil = "<script>alert('&')</script>\"]]>"
    for source in ({evil: np.zeros(2)}, np.zeros(2, [(evil, "f4")]), type(evil, (), {})()):
        html = nd.explain(source)._repr_html_()
        assert "<script" not in html
        assert evil in "".join(ET.fromstring(f"<html>{html}</html>").itertext()).replace("\\'", "'")
