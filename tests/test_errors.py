"""Errors: one form of message, facts as attributes, builtins to catch, and never an array's values."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from strategies import pitched, read_only

import ndtorch as nd

A = np.full(3, 123456.75)
SECRET = "123456"
BIG = np.lib.stride_tricks.as_strided(A, (3,), (2**62,))
LONG = np.dtype(np.longdouble).name
RECORD = np.zeros(2, [("a", "f4")])

# the start of the fact ... what else the message has to contain: what is done
ERRORS: dict[type, dict[str, Callable[[], Any]]] = {
    nd.CopyRequiredError: {
        'cannot share memory with f64[3](numpy): it is read-only ... readonly="share"': lambda: nd.to_torch(
            read_only(A.copy()), copy=False
        ),
        'cannot share memory with f64[3](numpy) ... readonly="copy"': lambda: nd.to_torch(
            read_only(A.copy()), readonly="error"
        ),
        "cannot share memory with ... axis 0 has a negative stride (-8 bytes)": lambda: nd.to_torch(
            A[::-1], copy=False
        ),
        "cannot share memory with ... a stride of 9 bytes": lambda: nd.to_torch(pitched(A, 9), copy=False),
        "cannot share memory with ... unaligned": lambda: nd.to_torch(pitched(A, 8, 1), copy=False),
        "cannot share memory with ... other order": lambda: nd.to_torch(A.astype(">f8"), copy=False),
        "cannot share memory with ... float32 was asked for and it is f64": lambda: nd.to_torch(
            A, dtype="float32", copy=False
        ),
        "cannot share memory with ... device='meta'": lambda: nd.to_torch(A, device="meta", copy=False),
        "cannot share memory with float[](python) ... no array memory": lambda: nd.to_torch(2.5, copy=False),
        "cannot share memory with f32[](numpy) ... no array memory": lambda: nd.to_torch(np.float32(1), copy=False),
        "cannot share memory with c64[1](torch) ... conj bit": lambda: nd.to_numpy(
            torch.ones(1, dtype=torch.cfloat).conj(), copy=False
        ),
        "cannot share memory with ... structured": lambda: nd.to_numpy({"a": torch.ones(2)}, like=RECORD, copy=False),
    },
    nd.UnsupportedTypeError: {
        "cannot convert an object ... expected an array": lambda: nd.to_torch(object()),
        "cannot convert None ... got NoneType": lambda: nd.to_torch(None),
        "cannot convert masked f64[3](numpy) ... masked='split'": lambda: nd.to_torch(np.ma.array(A, mask=True)),
        "cannot convert an object array ... index 1 is None": lambda: nd.to_torch(np.array([1, None], object)),
        "cannot convert coo f32[2,2](torch) ... to_dense()": lambda: nd.to_numpy(torch.ones(2, 2).to_sparse(1)),
        "cannot convert f32[2](torch) ... torch.empty_like": lambda: nd.to_numpy(torch.ones(2, device="meta")),
        "cannot move f32[2](torch) ... torch.empty_like": lambda: nd.to_torch(
            torch.ones(2, device="meta"), device="cpu"
        ),
        "cannot convert V3[2](numpy) ... array.view(dtype)": lambda: nd.to_torch(np.zeros(2, "V3")),
        "cannot convert StringDType[1] ... array.tolist()": lambda: nd.to_torch(
            np.array(["a"], np.dtypes.StringDType())
        ),
        "cannot convert ... shares_memory:": lambda: nd.shares_memory(object(), A),
        "like= is a masked array ... masked='split'": lambda: nd.to_numpy(torch.ones(2), like=np.ma.array([1, 2])),
    },
    nd.UnsupportedDtypeError: {
        f"cannot convert {LONG}[3](numpy) ... dtype='float64'": lambda: nd.to_torch(A.astype("g")),
        "dtype=float32 cannot apply to U1[1](numpy) ... float_dtype=": lambda: nd.to_torch(
            np.array(["a"]), dtype="float32"
        ),
        "dtype=datetime64[s] cannot name ... expected int64, got f32": lambda: nd.to_numpy(
            torch.ones(2), dtype="M8[s]"
        ),
        "dtype= ... like=": lambda: nd.to_numpy(torch.ones(2), dtype=RECORD.dtype),
        "dtype=M8[s] is not ... bfloat16": lambda: nd.to_torch(A, dtype="M8[s]"),
        "cannot cast f64[3](numpy) to complex32 ... to(torch.complex32)": lambda: nd.to_torch(A, dtype="complex32"),
    },
    nd.LossyCastError: {
        "cannot cast f64[3](numpy) to int32 ... casting='unsafe' insists": lambda: nd.to_torch(A, dtype="int32"),
        "casting='exact' from f64[2](numpy) ... index 1: 0.5 would become 0": lambda: nd.to_torch(
            np.array([1, 0.5]), dtype="int32", casting="exact"
        ),
        "cannot convert a list of numbers ... dtype='uint64'": lambda: nd.to_torch([2**70]),
        "cannot convert an object array exactly ... at index 1": lambda: nd.to_torch(
            np.array([0.5, 2**53 + 1], object)
        ),
    },
    nd.ShapeMismatchError: {
        "cannot stack an object array ... expected (2,), got (3,)": lambda: nd.to_torch(_ragged()),
        "like= has another structure ... expected PyTreeSpec": lambda: nd.to_numpy({"a": torch.ones(1)}, like={"b": A}),
        "like= is a structured array ... expected ['a'], got ['b']": lambda: nd.to_numpy(
            {"b": torch.ones(2)}, like=RECORD
        ),
        "like= is one number ... got (2,)": lambda: nd.to_numpy(torch.ones(2), like=1.0),
    },
    nd.InvalidOptionError: {
        "copy='yes' has no meaning ... expected None, True or False, got 'yes'": lambda: nd.to_torch(A, copy="yes"),
        "casting='round' has no meaning ... same_kind, unsafe, exact": lambda: nd.to_numpy(A, casting="round"),
        "readonly=True has no meaning ... copy, share, error": lambda: nd.to_torch(A, readonly=True),
        "masked='drop' has no meaning ... error, split": lambda: nd.to_torch(A, masked="drop"),
        "device='abacus' is not a device ... device='cpu'": lambda: nd.to_torch(A, device="abacus"),
        "dtype='flat32' is not a dtype ... torch.float32": lambda: nd.to_torch(A, dtype="flat32"),
        "dtype=[1] is not a dtype ... numpy.float32": lambda: nd.to_torch(A, dtype=[1]),
        "float_dtype=int8 is not a floating dtype ... dtype=": lambda: nd.to_torch(A, float_dtype="int8"),
        "dtype=f4 and float_dtype=f4 were both given ... use one": lambda: nd.to_torch(A, dtype="f4", float_dtype="f4"),
        "like= and a dtype were both given ... use one": lambda: nd.to_numpy(A, dtype="f4", like=A),
        "to='jax' has no meaning ... 'torch' or 'numpy'": lambda: nd.explain(A, to="jax"),
    },
    nd.NdtorchError: {
        "cannot convert f64[3](numpy) ... below 2**63 bytes": lambda: nd.to_torch(BIG),
        "the structure contains itself ... one by one": lambda: nd.to_torch(_cycle()),
    },
}


def _ragged() -> np.ndarray:
    objects = np.empty(2, object)
    objects[:] = [np.zeros(2), np.zeros(3)]
    return objects


def _cycle() -> list[Any]:
    cycle: list[Any] = [A]
    cycle.append(cycle)
    return cycle


ALL = {text: (error, call) for error, calls in ERRORS.items() for text, call in calls.items()}


def raised(text: str) -> nd.NdtorchError:
    error, call = ALL[text]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return caught.value


MESSAGE = re.compile(r"\w+: .+?(; expected .+, got .+)?\.( Hint: .+\.)?", re.DOTALL)


@pytest.mark.parametrize("name", ALL)
def test_message_has_the_form_and_the_facts(name: str) -> None:
    start, needle = name.split(" ... ")
    error = raised(name)
    text = str(error)
    assert MESSAGE.fullmatch(text)
    assert text.split(": ", 1)[0] in ("to_torch", "to_numpy", "explain", "shares_memory")
    assert error.fact.startswith(start)
    assert needle in text
    expected = f"; expected {error.expected}, got {error.got}" if error.expected is not None else ""
    hint = f". Hint: {error.hint}." if error.hint is not None else "."
    assert text == f"{error.subject}: {error.fact}{expected}{hint}"
    assert ".." not in text.replace("(...)", "")
    assert "\n" not in text


@pytest.mark.parametrize("name", ALL)
def test_error_never_prints_an_array_and_holds_no_reference_to_one(name: str) -> None:
    error = raised(name)
    assert SECRET not in str(error)
    assert SECRET not in repr(error)
    assert not [v for v in vars(error).values() if isinstance(v, np.ndarray | torch.Tensor) and v.ndim]


@pytest.mark.parametrize("name", ALL)
def test_error_survives_pickling_with_facts_and_notes(name: str) -> None:
    error = raised(name).at("['x'][0]")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (str(again), again.args) == (str(error), error.args)
        assert (again.path, again.__notes__) == (error.path, ["at source['x'][0]"])
        for fact in ("subject", "fact", "hint", "facts"):
            assert getattr(again, fact) == getattr(error, fact)
        assert (str(again.expected), str(again.got)) == (str(error.expected), str(error.got))
        with pytest.raises(AttributeError, match="nonsense"):
            again.nonsense  # noqa: B018


def test_error_reaches_another_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(raised_elsewhere).exception()
    assert isinstance(error, nd.LossyCastError)
    assert (error.index, error.value, error.dtype, error.path) == ((1,), 0.5, "int32", "['x']")


def raised_elsewhere() -> None:
    nd.to_torch({"x": np.array([1, 0.5])}, dtype="int32", casting="exact")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (nd.CopyRequiredError, ValueError),
        (nd.UnsupportedTypeError, TypeError),
        (nd.UnsupportedDtypeError, TypeError),
        (nd.LossyCastError, ValueError),
        (nd.ShapeMismatchError, ValueError),
        (nd.InvalidOptionError, ValueError),
        (nd.FormatError, ValueError),
        (nd.MissingFileError, FileNotFoundError),
        (nd.MissingFileError, nd.FormatError),
        (nd.MissingDependencyError, ImportError),
    ],
)
def test_error_is_also_the_builtin_that_a_caller_would_catch(error: type, builtin: type) -> None:
    assert issubclass(error, nd.NdtorchError)
    assert issubclass(error, builtin)
    made = error("read", "it is not there", expected=1, got=2, hint="look again", name="x")
    assert str(made) == "read: it is not there; expected 1, got 2. Hint: look again."
    assert (made.path, made.facts["name"]) == ("", "x")
    again = pickle.loads(pickle.dumps(made))
    assert (str(again), again.facts, again.hint) == (str(made), made.facts, made.hint)
    assert error.__module__ == "ndtorch"


FACTS = {
    "cannot share memory with ... axis 0 has a negative stride (-8 bytes)": {
        "reason": "axis 0 has a negative stride (-8 bytes)"
    },
    'cannot share memory with f64[3](numpy) ... readonly="copy"': {"reason": "it is read-only"},
    "cannot convert an object array ... index 1 is None": {"index": (1,), "type": type(None)},
    "casting='exact' from f64[2](numpy) ... index 1: 0.5 would become 0": {
        "index": (1,),
        "value": 0.5,
        "became": 0,
        "dtype": "int32",
    },
    "cannot cast f64[3](numpy) to int32 ... casting='unsafe' insists": {"dtype": "int32"},
    "cannot convert an object array exactly ... at index 1": {"index": (1,), "value": 2**53 + 1},
    "cannot stack an object array ... expected (2,), got (3,)": {"index": (1,)},
    f"cannot convert {LONG}[3](numpy) ... dtype='float64'": {"dtype": LONG},
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_attributes_so_that_nobody_parses_text(name: str) -> None:
    error = raised(name)
    assert {fact: getattr(error, fact) for fact in FACTS[name]} == FACTS[name]
    assert set(FACTS[name]) == set(error.facts)


@pytest.mark.parametrize("name", ERRORS[nd.CopyRequiredError])
def test_refused_share_names_the_option_that_copies(name: str) -> None:
    assert raised(name).hint.startswith(("copy=None copies", 'readonly="copy" copies'))


def test_cause_is_not_shown_twice() -> None:
    with pytest.raises(nd.InvalidOptionError) as caught:
        nd.to_torch(A, device="abacus")
    assert caught.value.__suppress_context__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so nothing is refused")
def test_device_that_this_machine_lacks_is_refused_in_words() -> None:
    with pytest.raises(nd.InvalidOptionError, match=r"device='cuda' cannot be used here \(.*\)\. Hint: device='cpu'"):
        nd.to_torch(np.zeros(3), device="cuda")


def test_option_that_does_not_exist_is_named_by_explain() -> None:
    with pytest.raises(nd.InvalidOptionError, match=r"bogus= is no option of the call; expected dtype, "):
        nd.explain(np.zeros(3), bogus=1)


def test_more_dimensions_than_numpy_has_are_refused() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="70 dimensions; expected at most 64"):
        nd.to_numpy(torch.zeros((1,) * 70))
    with pytest.raises(nd.UnsupportedTypeError, match="one dimension more"):
        nd.to_torch(np.zeros((1,) * 64, "S3"))


def test_like_text_is_refused_at_the_top() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="like= cannot be a str"):
        nd.to_numpy(torch.ones(3), like="abc")
