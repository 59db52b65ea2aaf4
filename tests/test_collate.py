"""`collate`: samples into one batch, held against `torch.utils.data.default_collate` and what `stack` promises."""

from __future__ import annotations

import dataclasses
import pickle
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from comparison import array_holding, assert_independent, assert_same, assert_shares, tensor_holding
from strategies import DTYPES, UNSHAREABLE, any_values, can_be, filled, read_only
from torch.utils.data import DataLoader, Dataset, default_collate

import ndtorch as nd


class Point(NamedTuple):
    x: Any
    y: Any = None


Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    image: Any
    parts: Any = ()


@dataclasses.dataclass
class Checked:
    """Its __init__ accepts arrays only, and must not run again for tensors."""

    data: Any
    size: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.data, np.ndarray), "only arrays"
        self.size = self.data.size


A = filled("float32")
MANY_A = torch.stack([tensor_holding(A), tensor_holding(A + 1), tensor_holding(A + 2)])


# ---- leaves ----


@pytest.mark.parametrize("layout", ["row-major", *UNSHAREABLE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_and_tensors_are_stacked(dtype: str, layout: str) -> None:
    numpy, _ = DTYPES[dtype]
    plain = [any_values(numpy, (3, 4), seed) for seed in range(3)]
    laid_out = [UNSHAREABLE[layout](x) if layout in UNSHAREABLE and can_be(layout, numpy) else x for x in plain]
    expected = tensor_holding(np.stack(plain))
    for batch in (laid_out, [tensor_holding(x.T).T for x in plain], [laid_out[0], tensor_holding(plain[1]), plain[2]]):
        before = [array_holding(x).tobytes() if isinstance(x, torch.Tensor) else x.tobytes() for x in batch]
        result = nd.collate(batch)
        assert_same(result, expected)
        for leaf in batch:
            assert_independent(result, leaf)
        after = [array_holding(x).tobytes() if isinstance(x, torch.Tensor) else x.tobytes() for x in batch]
        assert after == before, "a sample was written"


def test_leaves_of_several_dtypes_are_promoted_whatever_their_order() -> None:
    samples = [{"x": filled("uint8")}, {"x": filled("int8")}, {"x": tensor_holding(filled("float16"))}]
    expected = {"x": tensor_holding(np.stack([filled("float16")] * 3))}
    for batch in (samples, samples[::-1], samples[1:] + samples[:1]):
        assert_same(nd.collate(batch), expected)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2, 3],
        [1.5, -0.0, float("nan")],
        [True, False],
        [np.float32(1.5), np.float32(2)],
        [np.float64(1.5)],
        [np.int8(-1), np.int8(2)],
        [np.bool_(True), np.bool_(False)],
        [np.complex64(1j), np.complex64(2)],
        [2**62, -(2**63)],
        [np.array(1.5), np.array(2.5)],
        [torch.tensor(1), torch.tensor(2)],
        ["text", "of", "samples"],
        [b"bytes"],
    ],
    ids=repr,
)
def test_numbers_and_text_become_what_torch_makes_of_them(batch: list[Any]) -> None:
    assert_same(nd.collate(batch), default_collate(batch))
    assert_same(nd.collate([{"x": leaf} for leaf in batch]), default_collate([{"x": leaf} for leaf in batch]))


def test_none_becomes_a_list() -> None:
    assert_same(nd.collate([None, None]), [None, None])
    assert_same(nd.collate([(A, None), (A, None)])[1], [None, None])


def test_time_becomes_its_integers() -> None:
    days = np.array(["2024-01-01", "NaT"], "M8[D]")
    assert_same(nd.collate([{"day": days}, {"day": days}]), {"day": torch.tensor([[19723, -(2**63)]] * 2)})


# ---- batches already ----


def test_a_dict_of_arrays_is_a_batch_already() -> None:
    x, fixed = filled("float32", (3, 4)), read_only(np.arange(3))
    batch = {"x": x, "y": fixed, "t": torch.ones(3), "n": np.array(["a", "b", "c"], object), "u": np.array(["d"] * 3)}
    result = nd.collate(batch)
    assert_shares(result["x"], x)
    assert result["t"] is batch["t"]
    assert (result["n"], result["u"]) == (["a", "b", "c"], ["d"] * 3)
    assert_independent(result["y"], fixed)
    result["y"].zero_()
    assert fixed.tolist() == [0, 1, 2]
    assert_same(nd.collate({"x": x[:0], "n": np.empty(0, object)})["x"], torch.empty(0, 4))


def test_objects_in_a_column_are_collated() -> None:
    column = np.empty(2, object)
    column[:] = [{"a": np.zeros(2), "b": 1}, {"a": np.ones(2), "b": 2}]
    result = nd.collate({"d": column})["d"]
    assert_same(result, {"a": torch.tensor([[0.0, 0], [1, 1]], dtype=torch.float64), "b": torch.tensor([1, 2])})
    column[:] = [np.zeros(2), np.ones(3)]
    with pytest.raises(nd.ShapeMismatchError, match="sample 1 has an array of another shape") as caught:
        nd.collate({"x": column})
    assert caught.value.path == "['x']"


def test_a_dict_that_is_no_batch_is_refused() -> None:
    with pytest.raises(nd.ShapeMismatchError, match="column 'y' has another length than column 'x'; expected 3, got 2"):
        nd.collate({"x": np.zeros(3), "y": np.zeros(2)})
    for sample in ({}, {"x": np.zeros(3), "y": 1}, {"x": np.array(1.0)}, {"x": [1, 2]}):
        with pytest.raises(nd.UnsupportedTypeError, match=r"cannot collate a dict; expected .*, or a dict of arrays"):
            nd.collate(sample)


# ---- structures ----

STRUCTURES: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], list[Any]]]] = {
    "dict": (lambda a, b: {"b": b, "a": a}, lambda s: [s["a"], s["b"]]),
    "dict with odd keys": (lambda a, b: {1: a, (2, "x"): b}, lambda s: [s[1], s[2, "x"]]),
    "list": (lambda a, b: [a, b], list),
    "tuple": (lambda a, b: (a, b), list),
    "named tuple": (Point, list),
    "collections.namedtuple": (Pair, list),
    "dataclass": (Sample, lambda s: [s.image, s.label]),
    "frozen dataclass with slots": (Frozen, lambda s: [s.image, s.parts]),
    "nested": (
        lambda a, b: {"x": [Sample(Frozen(a, (b, {"again": a})), Point((b,)))]},
        lambda s: [s["x"][0].image.image, s["x"][0].label.x[0]],
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_samples_keep_their_structure(name: str) -> None:
    make, leaves_of = STRUCTURES[name]
    samples = [make(A + i, i) for i in range(3)]
    result = nd.collate(samples)
    assert type(result) is type(samples[0])
    assert_same(leaves_of(result), [MANY_A, torch.arange(3)])
    for i, sample in enumerate(samples):
        assert_same(leaves_of(sample), [A + i, i])
    assert_same(leaves_of(nd.collate(samples[:1])), [MANY_A[:1], torch.arange(1)])


def test_dicts_of_one_set_of_keys_are_one_structure_in_any_order() -> None:
    result = nd.collate([{"x": A, "y": 1}, {"y": 2, "x": A + 1}])
    assert_same(result, {"x": MANY_A[:2], "y": torch.tensor([1, 2])})


def test_lists_of_numbers_are_lists_as_they_are_to_torch() -> None:
    for batch in ([[1, 2.5], [3, 4.5]], [{"box": [1, 2]}, {"box": [3, 4]}]):
        assert_same(nd.collate(batch), default_collate(batch))


def test_empty_containers_stay() -> None:
    assert_same(nd.collate([{"a": A, "more": {}, "parts": ()}] * 2)["more"], {})
    assert_same(nd.collate([Frozen(A), Frozen(A)]).parts, ())


def test_init_of_a_dataclass_does_not_run_again() -> None:
    result = nd.collate([Checked(A), Checked(A + 1)])
    assert type(result) is Checked
    assert_same([result.data, result.size], [MANY_A[:2], torch.tensor([12, 12])])


# ---- refusals ----


@pytest.mark.parametrize(
    ("batch", "index"),
    [
        ([{"a": A}, {"a": A}, {"b": A}], 2),
        ([{"a": A}, {"a": A, "b": 1}, {}], 1),
        ([{"a": A, "b": 1}, {"a": A}], 1),
        ([[A, 1], [A, 1], [A]], 2),
        ([(A, 1), [A, 1]], 1),
        ([(A, 1), (A, 1), (A, 1, 2)], 2),
        ([{"x": (A, A)}, {"x": (A, A)}, {"x": A}], 2),
        ([A, A, {"x": A}], 2),
        ([Point(A, 1), Pair(A, 1)], 1),
        ([Point(A, 1), (A, 1)], 1),
        ([Sample(A), Sample(A), Frozen(A)], 2),
        ([Sample(A), {"image": A, "label": 0}], 1),
        ([Sample(A, ()), Sample(A, ()), Sample(A, (A,))], 2),
        ([A, A, "text"], 2),
        ([{"x": "text"}, {"x": A}], 1),
        ([{"x": A}, {"x": None}], 1),
    ],
    ids=lambda value: None if isinstance(value, int) else f"a {type(value[-1]).__name__} last",
)
def test_first_sample_of_another_structure_is_named(batch: list[Any], index: int) -> None:
    with pytest.raises(nd.ShapeMismatchError) as caught:
        nd.collate(batch)
    assert caught.value.index == index
    assert str(caught.value).startswith("collate: ")


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda leaf: leaf, ""),
        (lambda leaf: {"label": A, "image": leaf}, "['image']"),
        (lambda leaf: (A, [A, leaf]), "[1][1]"),
        (lambda leaf: Sample(A, {"parts": (leaf,)}), ".label['parts'][0]"),
        (lambda leaf: Point(Frozen(leaf)), ".x.image"),
    ],
    ids=["leaf", "dict", "lists", "dataclass", "named tuple"],
)
def test_leaf_of_another_shape_is_named_with_its_sample(make: Callable[[Any], Any], path: str) -> None:
    for odd in (A[:2], A[None], tensor_holding(A[:2])):
        with pytest.raises(nd.ShapeMismatchError) as caught:
            nd.collate([make(A), make(tensor_holding(A)), make(odd), make(A[:1])])
        error = caught.value
        assert (error.path, error.index, error.expected, error.got) == (path, 2, (3, 4), tuple(odd.shape))


@pytest.mark.parametrize(
    "leaf",
    [object(), {1, 2}, np.array([object()]), np.ma.ones(2), np.array(["a"])],
    ids=["object", "set", "array of objects", "masked", "text"],
)
def test_leaf_that_no_tensor_can_hold_is_refused_where_it_is(leaf: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.collate([{"x": (A, leaf)}] * 2)
    assert caught.value.path.startswith("['x'][1]")


def test_batch_without_samples_is_refused() -> None:
    with pytest.raises(nd.NdtorchError, match="collate"):
        nd.collate([])


# ---- in a DataLoader ----


class Pictures(Dataset):
    """Samples of every kind of leaf, the arrays laid out so that torch could not share them."""

    def __init__(self, side: int = 4, odd: int = -1) -> None:
        self.side, self.odd = side, odd

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        image = np.full((self.side, self.side + (i == self.odd), 3), i, np.uint8)[::-1]
        image[0, 0] = 255
        return {"image": image, "more": Sample((torch.full((2,), i), f"name {i}"), Point(i / 2, np.float32(i)))}


def collate_and_look(batch: list[Any]) -> tuple[Any, list[bool]]:
    made = nd.collate(batch)
    return made, [leaf.is_shared() for leaf in (made["image"], made["more"].image[0])]


def loader(dataset: Dataset, workers: int, collate: Callable[[list[Any]], Any]) -> DataLoader:
    context = "fork" if workers else None
    timeout = 60 if workers else 0
    options = {"num_workers": workers, "multiprocessing_context": context, "timeout": timeout}
    return DataLoader(dataset, batch_size=4, collate_fn=collate, **options)


# From Python 3.12 on a fork of a process that has threads warns; torch forks its workers so.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@forks
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("side", [4, 600], ids=["small", "large"])
def test_data_loader_gives_the_batches_that_collate_makes(side: int, workers: int) -> None:
    batches = list(loader(Pictures(side), workers, nd.collate))
    assert [len(batch["image"]) for batch in batches] == [4, 4, 2]
    for first, batch in zip((0, 4, 8), batches, strict=True):
        items = range(first, min(first + 4, 10))
        samples = [Pictures(side)[i] for i in items]
        assert type(batch["more"]) is Sample
        assert_same(batch["image"], tensor_holding(np.stack([s["image"] for s in samples])))
        vectors, names = batch["more"].image
        assert_same(vectors, torch.stack([s["more"].image[0] for s in samples]))
        assert_same(names, [f"name {i}" for i in items])
        halves, singles = default_collate([tuple(s["more"].label) for s in samples])
        assert_same(batch["more"].label, Point(halves, singles))


@forks
def test_batch_of_a_worker_lies_in_shared_memory_from_the_start() -> None:
    for side in (4, 300):
        assert [shared for _, shared in loader(Pictures(side), 2, collate_and_look)] == [[True, True]] * 3
    assert [shared for _, shared in loader(Pictures(), 0, collate_and_look)] == [[False, False]] * 3


def error_of(loader: DataLoader[Any]) -> nd.ShapeMismatchError:
    """Its error without the frames: they would keep the loop, whose end in a collection takes torch 5 s a worker."""
    try:
        list(loader)
    except nd.ShapeMismatchError as error:
        return error.with_traceback(None)
    raise AssertionError("no error")


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_error_in_a_data_loader_tells_what_happened_where(workers: int) -> None:
    error = error_of(loader(Pictures(odd=5), workers, nd.collate))
    assert "collate: " in str(error)
    assert "['image']" in str(error) + "".join(getattr(error, "__notes__", []))


def test_collate_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(nd.collate)) is nd.collate


# ---- what errors say ----


def test_missing_key_is_named() -> None:
    with pytest.raises(nd.ShapeMismatchError, match="sample 2 has no 'y', which sample 0 has") as caught:
        nd.collate([{"x": 1, "y": 2}, {"x": 1, "y": 2}, {"x": 1}])
    assert caught.value.index == 2
    with pytest.raises(nd.ShapeMismatchError, match="sample 1 has 'z', which sample 0 has not"):
        nd.collate([{"x": 1}, {"x": 1, "z": 2}])


def test_error_of_a_leaf_has_one_note_and_helps_in_a_loader() -> None:
    with pytest.raises(nd.ShapeMismatchError) as caught:
        nd.collate([{"s": [A]}, {"s": [A[:2]]}])
    assert caught.value.__notes__ == ["at source['s'][0]"]
    assert str(caught.value).startswith(
        "collate: sample 1 has an array of another shape than sample 0; expected (3, 4)"
    )
    assert "collate_fn" in (caught.value.hint or "")


@pytest.mark.parametrize("batch", [{"x": 1}, "text", b"bytes"], ids=repr)
def test_one_sample_that_is_no_list_of_samples_is_refused(batch: Any) -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="expected a list of samples"):
        nd.collate(batch)


def test_error_in_a_worker_arrives_as_what_it_is() -> None:
    loader = DataLoader([A, A[:2]], batch_size=2, num_workers=1, collate_fn=nd.collate)
    assert "collate: sample 1" in str(error_of(loader))
