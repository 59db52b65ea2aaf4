"""Orders of `Loader` that somebody else makes: lists of numbers, samplers and batch samplers of torch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import assert_same
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import ndtorch as nd

N = 60
ROWS = np.arange(N)

SAMPLERS = {
    "sequential": lambda: SequentialSampler(ROWS),
    "random": lambda: RandomSampler(ROWS),
    "replacement": lambda: RandomSampler(ROWS, replacement=True, num_samples=100),
    "generator": lambda: RandomSampler(ROWS, generator=torch.Generator()),
    "subset": lambda: SubsetRandomSampler([3, 1, 4, 15, 9, 26]),
    "weighted": lambda: WeightedRandomSampler(ROWS + 1.0, 40),
    "weighted generator": lambda: WeightedRandomSampler(ROWS + 1.0, 40, generator=torch.Generator()),
    "distributed": lambda: DistributedSampler(ROWS, num_replicas=4, rank=1),
    "python's": lambda: FromEverywhere(),
}


class FromEverywhere:
    """Draws from all three global generators."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(20):
            yield (random.randrange(N) + np.random.randint(N) + int(torch.randint(N, ()))) % N

    def __len__(self) -> int:
        return 20


class Own(Sampler[int]):
    """Draws from a generator of its own, of a kind."""

    def __init__(self, generator: object) -> None:
        self.source = generator

    def __iter__(self) -> Iterator[int]:
        for _ in range(20):
            yield self.source.randrange(N) if isinstance(self.source, random.Random) else self.source.integers(N)


def epochs(loader: nd.Loader, count: int = 2) -> list[list[int]]:
    return [[row for batch in loader for row in batch.tolist()] for _ in range(count)]


# ---- lists of numbers ----


def test_a_list_is_the_order_of_every_epoch_and_the_hint_at_shuffle_draws_a_new_one() -> None:
    rows = np.array([3, 1, 4, 15, 9, 26])
    assert epochs(nd.Loader(ROWS, 4, sampler=rows)) == [rows.tolist()] * 2
    with pytest.raises(
        nd.InvalidOptionError, match=r"sampler= and shuffle= were both given\. Hint: sampler="
    ) as caught:
        nd.Loader(ROWS, 4, sampler=rows, shuffle=True)
    call = caught.value.hint.removeprefix("sampler=").split(" ")[0]
    first, second = epochs(nd.Loader(ROWS, 4, sampler=eval(call, {"torch": torch, "rows": rows})))
    assert sorted(first) == sorted(second) == sorted(rows)
    assert first != second
    with pytest.raises(nd.InvalidOptionError, match="a sampler is all of the order"):
        nd.Loader(ROWS, 4, sampler=RandomSampler(ROWS), shuffle=True)


def test_a_loader_says_how_many_samples_and_of_how_many_rows() -> None:
    for numbers in ([1, 2, 3], SubsetRandomSampler([1, 2, 3])):
        assert repr(nd.Loader(ROWS, 2, sampler=numbers)).startswith(f"<Loader: 3 samples of {N} rows in batches of 2, ")
    weighted = nd.Loader(ROWS, 2, weights=ROWS + 1.0, num_samples=2 * N)
    assert repr(weighted).startswith(f"<Loader: {2 * N} samples of {N} rows in batches of 2, ")
    for sampler in (range(N), Unsized()):
        assert repr(nd.Loader(ROWS, 2, sampler=sampler)).startswith(f"<Loader: {N} rows in batches of 2, ")


class Unsized:
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2, 3])


@pytest.mark.parametrize(
    "numbers",
    [
        [5, 0, -1, 5],
        (5, 0, -1, 5),
        np.array([5, 0, -1, 5], np.int16),
        np.array([5, 0, 59, 5], np.uint64),
        np.array([5, 0, -1, 5], ">i4"),
        np.array([5, 9, 0, 9, -1, 9, 5])[::2],
        torch.tensor([5, 0, -1, 5]),
        [np.int8(5), torch.tensor(0), -1, 5],
    ],
)
def test_rows_come_in_the_order_of_a_list(numbers: object) -> None:
    loader = nd.Loader(ROWS, batch_size=3, sampler=numbers)
    assert epochs(loader) == [[5, 0, 59, 5]] * 2
    assert len(loader) == 2


def test_a_list_is_read_once() -> None:
    numbers = np.array([1, 2, 3])
    loader = nd.Loader(ROWS, sampler=numbers)
    numbers[:] = 100
    assert epochs(loader, 1) == [[1, 2, 3]]


def test_an_iterator_is_read_to_its_end_and_gives_every_epoch() -> None:
    assert epochs(nd.Loader(ROWS, batch_size=2, sampler=(row * row for row in range(4)))) == [[0, 1, 4, 9]] * 2


def test_an_empty_list_gives_no_batches() -> None:
    assert epochs(nd.Loader(ROWS, sampler=[])) == [[], []]
    assert epochs(nd.Loader(ROWS, sampler=np.empty(0, np.int64))) == [[], []]


@pytest.mark.parametrize(
    ("numbers", "fact"),
    [
        ([0, 60], "sampler=list gives 60, and the data has 60 rows"),
        ([0, -61], "sampler=list gives -61, and the data has 60 rows"),
        (np.array([2**63], np.uint64), "sampler=ndarray gives 9223372036854775808, and the data has 60 rows"),
        ([2**80], "sampler=list gives a int, which is no number of a row"),
        ([0, 1.5], "sampler=list gives 1.5, which is no number of a row"),
        (["a"], "sampler=list gives 'a', which is no number of a row"),
        ([[0, 1]], r"sampler=list gives \[0, 1\], which is no number of a row. Hint: batch_sampler= takes lists"),
        ([True] * 60, r"sampler=list holds a mask. Hint: np.flatnonzero\(mask\) gives"),
        (np.ones(60, bool), r"sampler=ndarray holds a mask. Hint: np.flatnonzero\(mask\) gives"),
        (torch.ones(60), r"sampler=Tensor is f32\[60\]\(numpy\)"),
        (np.zeros((2, 2), int), r"sampler=ndarray is i64\[2,2\]\(numpy\)"),
        (iter([0, 60]), "sampler=list_iterator gives 60, and the data has 60 rows"),
        (iter([True, False]), "sampler=list_iterator holds a mask"),
    ],
)
def test_what_is_no_number_of_a_row_is_named_at_once(numbers: object, fact: str) -> None:
    with pytest.raises(nd.InvalidOptionError, match=fact):
        nd.Loader(ROWS, sampler=numbers)


@pytest.mark.parametrize("option", ["sampler", "batch_sampler"])
@pytest.mark.parametrize("value", [3, "0123", RandomSampler])
def test_what_cannot_be_iterated_is_refused(option: str, value: object) -> None:
    with pytest.raises(nd.UnsupportedTypeError, match=f"{option}=.* cannot be iterated"):
        nd.Loader(ROWS, **{option: value})


# ---- samplers ----


def test_a_sequential_sampler_gives_rows_as_they_lie() -> None:
    assert epochs(nd.Loader(ROWS, 7, sampler=SequentialSampler(ROWS))) == [ROWS.tolist()] * 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_gives_what_it_gives_in_the_order_that_it_gives(name: str) -> None:
    loader = nd.Loader(ROWS, 7, sampler=SAMPLERS[name]())
    first, second = epochs(loader)
    assert len(first) == len(second) == len(SAMPLERS[name]())
    assert len(loader) == -(-len(first) // 7)
    if name in ("random", "generator"):
        assert sorted(first) == sorted(second) == ROWS.tolist()
    if name == "subset":
        assert sorted(first) == [1, 3, 4, 9, 15, 26]
    assert (first == second) == (name == "sequential")


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_order_of_a_sampler_depends_on_the_seed_and_the_epoch_alone(name: str) -> None:
    expected = epochs(nd.Loader(ROWS, 7, sampler=SAMPLERS[name](), threads=0))
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert epochs(nd.Loader(ROWS, 4, sampler=SAMPLERS[name](), threads=2)) == expected
    if name not in ("sequential", "generator", "weighted generator", "distributed"):
        assert epochs(nd.Loader(ROWS, 4, sampler=SAMPLERS[name](), seed=1)) != expected
        loader = nd.Loader(ROWS, 4, sampler=SAMPLERS[name]())
        loader.set_epoch(1)
        assert epochs(loader, 1) == expected[1:]


@pytest.mark.parametrize("name", SAMPLERS)
def test_global_generators_are_left_as_they_were(name: str) -> None:
    loader = nd.Loader(ROWS, 7, sampler=SAMPLERS[name]())
    expected = torch.rand(3), np.random.rand(), random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    for _ in loader:
        break
    list(loader)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]


def test_global_generators_are_left_as_they_were_by_a_sampler_that_fails() -> None:
    class Failing:
        def __iter__(self) -> Iterator[int]:
            yield int(torch.randint(N, ()))
            raise LookupError("no more")

    before = torch.default_generator.get_state()
    loader = nd.Loader(ROWS, sampler=Failing())
    for _ in range(2):
        with pytest.raises(LookupError, match="no more"):
            list(loader)
        assert torch.equal(torch.default_generator.get_state(), before)
        assert loader.epoch == 0


def test_samplers_draw_on_the_cpu_whatever_the_default_device_is() -> None:
    expected = epochs(nd.Loader(ROWS, 7, sampler=RandomSampler(ROWS)))
    loader = nd.Loader(ROWS, 7, sampler=RandomSampler(ROWS))
    with torch.device("meta"):
        found = [list(loader) for _ in range(2)]
    assert [[row for batch in each for row in batch.tolist()] for each in found] == expected


def test_a_distributed_sampler_is_told_the_epoch_and_deals_by_itself() -> None:
    seen = []
    for rank in range(4):
        loader = nd.Loader(ROWS, 7, sampler=DistributedSampler(ROWS, num_replicas=4, rank=rank, seed=3))
        assert (loader.rank, loader.world_size) == (0, 1)
        seen.append(epochs(loader))
    for epoch in range(2):
        assert sorted(row for each in seen for row in each[epoch]) == ROWS.tolist()
    assert seen[0][0] != seen[0][1]


def test_the_epoch_is_told_to_a_sampler_within_a_batch_sampler() -> None:
    inner = DistributedSampler(ROWS, num_replicas=1, rank=0)
    loader = nd.Loader(ROWS, batch_sampler=BatchSampler(inner, 7, False))
    first, second = epochs(loader)
    assert first != second
    assert inner.epoch == 1


def test_a_sampler_without_a_length_gives_its_epochs_and_no_len() -> None:
    class Growing:
        calls = 0

        def __iter__(self) -> Iterator[int]:
            self.calls += 1
            return iter(range(self.calls * 10))

    loader = nd.Loader(ROWS, 7, sampler=Growing())
    with pytest.raises(
        TypeError, match=r"sampler=Growing does not say how many it gives. Hint: give Growing a __len__"
    ):
        len(loader)
    assert [len(each) for each in epochs(loader, 3)] == [10, 20, 30]
    assert loader.epoch == 3


def test_what_a_sampler_gives_counts_and_not_its_length() -> None:
    class Wrong(FromEverywhere):
        def __len__(self) -> int:
            return 1000

    assert [len(each) for each in epochs(nd.Loader(ROWS, 7, sampler=Wrong()))] == [20, 20]


def test_a_sampler_that_never_ends_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndtorch.loader.samplers._MOST", 1 << 17)

    class Endless:
        def __iter__(self) -> Iterator[int]:
            return (row % N for row in count())

    with pytest.raises(nd.InvalidOptionError, match="sampler=Endless has given 131072 numbers and not come to an end"):
        next(iter(nd.Loader(ROWS, sampler=Endless())))
    with pytest.raises(nd.InvalidOptionError, match="sampler=generator has given"):
        nd.Loader(ROWS, sampler=(row % N for row in count()))


def test_a_number_out_of_range_names_the_sampler() -> None:
    loader = nd.Loader(ROWS, sampler=SubsetRandomSampler([1, 77]))
    with pytest.raises(nd.InvalidOptionError, match="sampler=SubsetRandomSampler gives 77, and the data has 60 rows"):
        next(iter(loader))
    assert loader.epoch == 0


# ---- batch samplers ----


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_sampler_makes_the_batches(drop_last: bool) -> None:
    loader = nd.Loader(ROWS, batch_sampler=BatchSampler(SequentialSampler(ROWS), 7, drop_last))
    batches = [batch.tolist() for batch in loader]
    assert batches == [ROWS[i : i + 7].tolist() for i in range(0, N, 7)][: 8 if drop_last else 9]
    assert len(loader) == len(batches)
    assert loader.batch_size is None


def test_batches_of_any_sizes_are_given_as_they_are() -> None:
    given = [[1, 2, 3], (), np.array([-1]), torch.tensor([5, 5, 5, 5]), range(10, 12)]
    loader = nd.Loader({"x": ROWS, "y": ROWS * 2}, batch_sampler=given)
    for _ in range(2):
        batches = list(loader)
        assert [batch["x"].tolist() for batch in batches] == [[1, 2, 3], [], [59], [5, 5, 5, 5], [10, 11]]
        assert all(torch.equal(batch["y"], 2 * batch["x"]) for batch in batches)
    assert len(loader) == 5


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("given", [[[0], [], [1]], [[], [2]], [[3], []], [[0, 1], [2], [3], [], [], [4]]])
def test_an_empty_batch_of_a_mapped_file_is_empty(given: list[list[int]], threads: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS)
    for source in (nd.read(tmp_path / "x.npy")["x"], np.load(tmp_path / "x.npy", mmap_mode="r")):
        loader = nd.Loader(source, batch_sampler=given * 50, threads=threads)
        for _ in range(2):
            assert [batch.tolist() for batch in loader] == given * 50


@pytest.mark.parametrize("threads", [0, 2])
def test_a_batch_sampler_that_shuffles_depends_on_the_seed_and_the_epoch_alone(threads: int) -> None:
    def batches(seed: int) -> list[list[int]]:
        sampler = BatchSampler(RandomSampler(ROWS), 8, drop_last=False)
        loader = nd.Loader(ROWS, batch_sampler=sampler, seed=seed, threads=threads)
        return [batch.tolist() for _ in range(2) for batch in loader]

    assert batches(0) == batches(0)
    assert batches(0) != batches(1)
    assert sorted(row for batch in batches(0)[:8] for row in batch) == ROWS.tolist()


@pytest.mark.parametrize(
    ("batches", "fact"),
    [
        ([0, 1], "batch_sampler=list gives 0, not lists of numbers. Hint: sampler= takes one number at a time"),
        ([[0], [60]], "batch_sampler=list gives 60, and the data has 60 rows"),
        ([[0], [0.5]], "batch_sampler=list gives 0.5, which is no number of a row"),
        ([[0], [[1]]], r"batch_sampler=list gives \[1\], which is no number of a row"),
        ([[True, False]], "batch_sampler=list holds a mask"),
    ],
)
def test_what_is_no_batch_is_named(batches: object, fact: str) -> None:
    with pytest.raises(nd.InvalidOptionError, match=fact):
        next(iter(nd.Loader(ROWS, batch_sampler=batches)))


def test_a_batch_sampler_that_never_ends_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndtorch.loader.samplers._MOST", 1000)

    class Endless:
        def __iter__(self) -> Iterator[list[int]]:
            while True:
                yield []

    with pytest.raises(nd.InvalidOptionError, match="batch_sampler=Endless has given 1000 numbers"):
        next(iter(nd.Loader(ROWS, batch_sampler=Endless())))


PICTURE = np.ones((4, 5, 3), np.uint8)
LISTS = {
    "equal arrays": ([np.ones((2, 3))] * 3, {}),
    "equal arrays cast": ([np.ones((2, 3))] * 3, {"float_dtype": "float32"}),
    "arrays of any length": ([np.ones((2 + i, 3)) for i in range(3)], {}),
    "arrays of any length cast": ([np.ones((2 + i, 3)) for i in range(3)], {"float_dtype": "float32"}),
    "arrays of any shape": ([np.ones((2 + i, 3 - i)) for i in range(3)], {}),
    "lists of numbers": ([[1, 2], [3], []], {}),
    "numbers": ([1, 2, 3], {}),
    "texts": (["a", "b", "c"], {}),
    "pictures": ([PICTURE] * 3, {"image": True}),
    "grey pictures": ([PICTURE[..., 0]] * 3, {"image": True}),
    "pictures with channels last": ([PICTURE] * 3, {"image": {"memory_format": torch.channels_last}}),
    "pictures of any size": ([PICTURE[i:] for i in range(3)], {"image": True}),
    "rows of an array": (np.ones((3, 2)), {}),
}


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("kind", LISTS)
def test_an_empty_batch_is_as_another_one_without_its_rows(kind: str, threads: int) -> None:
    data, options = LISTS[kind]
    one, none = nd.Loader(data, batch_sampler=[[0], []], threads=threads, **options)
    assert_same(none, one[:0])


@pytest.mark.parametrize("kind", ["arrays of any length", "equal arrays", "lists of numbers"])
def test_an_empty_batch_of_padded_rows_is_no_rows_and_no_lengths(kind: str) -> None:
    (rows, lengths), (none, no_lengths) = nd.Loader(LISTS[kind][0], batch_sampler=[[0], []], pad_value=0)
    assert_same((none, no_lengths), (rows[:0, :0], lengths[:0]))


@pytest.mark.parametrize("options", [{}, {"float_dtype": "float32"}], ids=str)
def test_an_empty_batch_of_padded_files_is_no_rows_and_no_lengths(tmp_path: Path, options: dict[str, str]) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.ones((2 + i, 3)))
    files = nd.read(tmp_path).values()
    (rows, lengths), (none, no_lengths) = nd.Loader(files, batch_sampler=[[0], []], pad_value=0, **options)
    assert_same((none, no_lengths), (rows[:0, :0], lengths[:0]))


def test_an_empty_batch_of_a_dataset_is_for_collate_fn_to_make() -> None:
    data = ConcatDataset([TensorDataset(torch.arange(3))])
    with pytest.raises(nd.InvalidOptionError, match=r"no samples of ConcatDataset.*; expected at least one") as raised:
        list(nd.Loader(data, batch_sampler=[[0], []]))
    assert raised.value.__notes__ == ["at batch 1 of the loop, no rows"]
    makes = eval(raised.value.hint.removeprefix("collate_fn=").partition(" has ")[0], {"ndtorch": nd})
    assert list(nd.Loader(data, batch_sampler=[[0], []], collate_fn=makes)) == [(torch.tensor([0]),), None]
    assert list(nd.Loader(data, batch_sampler=[[0], []], collate_fn=len)) == [1, 0]


# ---- going on in the midst of an epoch ----


@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_of_a_sampler_goes_on_bit_for_bit(name: str, is_batched: bool) -> None:
    def make(seed: int = 0) -> nd.Loader:
        sampler = SAMPLERS[name]()
        options = {"batch_sampler": BatchSampler(sampler, 4, False)} if is_batched else {"sampler": sampler}
        return nd.Loader(ROWS, **({} if is_batched else {"batch_size": 4}), **options, seed=seed)

    for taken in (0, 1, 2):
        loader = make()
        list(loader)
        loop = iter(loader)
        for _ in range(taken):
            next(loop)
        state = loader.state_dict()
        expected = [[batch.tolist() for batch in loop], *([batch.tolist() for batch in loader] for _ in range(2))]
        other = make(seed=5)
        other.load_state_dict(state)
        if not expected[0]:  # that epoch was over
            del expected[0]
        assert [[batch.tolist() for batch in other] for _ in expected] == expected, taken


@pytest.mark.parametrize("kind", ["python", "pcg", "mt", "philox"])
def test_the_generator_that_a_sampler_holds_goes_on_where_it_was(kind: str) -> None:
    def make(seed: int) -> nd.Loader:
        bits = {"pcg": np.random.PCG64, "mt": np.random.MT19937, "philox": np.random.Philox}
        source = random.Random(seed) if kind == "python" else np.random.Generator(bits[kind](seed))
        return nd.Loader(ROWS, 4, sampler=Own(source))

    loader = make(1)
    list(loader)
    loop = iter(loader)
    next(loop)
    state = loader.state_dict()
    expected = [batch.tolist() for batch in loop]
    other = make(2)
    other.load_state_dict(state)
    assert [batch.tolist() for batch in other] == expected
    assert epochs(other) == epochs(loader)


def test_randomness_that_is_hidden_is_found_out_and_not_passed_over() -> None:
    class Hidden:
        def __init__(self) -> None:
            self.draw = iter(random.Random(0).choices(range(N), k=1000)).__next__

        def __iter__(self) -> Iterator[int]:
            return iter([self.draw() for _ in range(20)])

    loader = nd.Loader(ROWS, 4, sampler=Hidden())
    list(loader)
    next(iter(loader))
    other = nd.Loader(ROWS, 4, sampler=Hidden())
    other.load_state_dict(loader.state_dict())
    with pytest.raises(nd.InvalidOptionError, match="sampler=Hidden gives other numbers than it gave when the state"):
        next(iter(other))


def test_a_state_of_another_sampler_is_refused() -> None:
    with_one = nd.Loader(ROWS, sampler=RandomSampler(ROWS, generator=torch.Generator()))
    without = nd.Loader(ROWS, sampler=RandomSampler(ROWS))
    with pytest.raises(nd.InvalidOptionError, match="not of sampler=RandomSampler with 0 generators of its own"):
        without.load_state_dict(with_one.state_dict())
    with pytest.raises(nd.InvalidOptionError, match="in 'sampler'; expected 'RandomSampler', got 'SequentialSampler'"):
        without.load_state_dict(nd.Loader(ROWS, sampler=SequentialSampler(ROWS)).state_dict())
    for junk in (None, 3, {}, {"generators": 3, "drawn": None}, {"generators": []}):
        with pytest.raises(nd.InvalidOptionError, match="the state is not of sampler=RandomSampler"):
            without.load_state_dict({**without.state_dict(), "memory": junk})
    for text in ("", "%", "AAAA", 3):
        with pytest.raises(nd.InvalidOptionError, match="the state of sampler=RandomSampler has no state of a Gen"):
            with_one.load_state_dict({**with_one.state_dict(), "memory": {"generators": [text], "drawn": None}})


def test_a_state_of_another_list_is_refused() -> None:
    loader = nd.Loader(ROWS, sampler=[3, 1, 2])
    with pytest.raises(nd.InvalidOptionError, match="in 'numbers'; expected"):
        nd.Loader(ROWS, sampler=[3, 2, 1]).load_state_dict(loader.state_dict())
