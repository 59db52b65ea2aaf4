"""The orders of `Loader` that are computed: permutations, windows and draws by weight.

Statistics are of fixed seeds, so that they are the same on every run; each threshold is far from what was measured.
"""

from __future__ import annotations

import inspect
import resource
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import WeightedRandomSampler

import ndtorch as nd
from ndtorch import _native
from ndtorch.loader.checks import OF_DATALOADER
from ndtorch.loader.draws import weighted
from ndtorch.loader.orders import Order, Shuffled, key_of
from ndtorch.loader.windows import Windowed, block_of, default_window

TABLE = 65_536  # the kernels shuffle a table up to here and compute each number above
SIZES = (0, 1, 2, 3, 4, 7, 64, 97, 1000, 4093, 4095, 4096, 4097, TABLE - 1, TABLE, TABLE + 1, 131_071, 131_072, 131_073)
LARGE = (10**9, 2**40, 2**62)


def whole(order: Order) -> np.ndarray:
    return order.rows(0, order.length)


def shuffled(n: int, seed: int = 0, epoch: int = 0) -> Order:
    return Shuffled(n).of_epoch(seed, epoch)


def rows_of(**options: object) -> list[int]:
    loader = nd.Loader(np.arange(100), batch_size=8, **options)
    return [row for batch in loader for row in batch.tolist()]


def excess(counts: np.ndarray, expected: np.ndarray | float, freedom: int) -> float:
    """Chi-square as a number of standard deviations from what chance gives."""
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


# ---- a permutation ----


@pytest.mark.parametrize("n", [*SIZES, 299_993])
def test_an_epoch_has_every_row_once(n: int) -> None:
    rows = whole(shuffled(n))
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(n))


@given(n=st.integers(1, 200_000), seed=st.integers(-(2**63), 2**64 - 1), epoch=st.integers(0, 2**63 - 1))
def test_any_stretch_is_computed_on_its_own(n: int, seed: int, epoch: int) -> None:
    order = shuffled(n, seed, epoch)
    rows = whole(order)
    assert len(np.unique(rows)) == n
    assert rows.min() == 0
    assert rows.max() == n - 1
    for start in (0, n // 3, n - 1):
        assert np.array_equal(order.rows(start, min(start + 50, n)), rows[start : start + 50])


@pytest.mark.parametrize("n", LARGE)
def test_rows_of_a_huge_epoch_are_distinct_and_take_no_memory(n: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    order = shuffled(n)
    rows = np.concatenate([order.rows(start, start + 2000) for start in range(0, n - 2000, n // 50)])
    assert rows.min() >= 0
    assert rows.max() < n
    assert len(np.unique(rows)) == len(rows)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KB


@pytest.mark.parametrize(
    ("n", "start", "expected"),
    [
        (10, 0, [2, 8, 6, 7, 3]),
        (TABLE, 0, [25877, 34647, 13849, 50488, 61241]),
        (TABLE + 1, 0, [13472, 25829, 20312, 56005, 22588]),
    ],
)
def test_the_order_is_the_same_on_every_machine(n: int, start: int, expected: list[int]) -> None:
    assert shuffled(n).rows(start, start + 5).tolist() == expected


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (10**9, [245949625, 855153332, 933117477, 80006522]),
        (2**40, [980121738578, 29158436630, 581208906515, 815383658146]),
        (2**62, [4073185583658231295, 2449657564521024837, 55449529073380037, 4043067673672626133]),
    ],
)
def test_the_order_of_many_rows_is_the_same_on_every_machine(n: int, expected: list[int]) -> None:
    assert shuffled(n, seed=7, epoch=3).rows(n // 2, n // 2 + 4).tolist() == expected


def test_all_orders_of_few_rows_are_equally_likely() -> None:
    counts = Counter(tuple(whole(shuffled(5, epoch=epoch))) for epoch in range(24_000))
    assert len(counts) == 120
    assert abs(excess(np.array(list(counts.values())), 200, 119)) < 4


@pytest.mark.parametrize("n", [3, 8, 50])
def test_every_row_comes_to_every_place_equally_often(n: int) -> None:
    counts = np.zeros((n, n))
    for seed in range(4000):
        counts[np.arange(n), whole(shuffled(n, seed))] += 1
    assert abs(excess(counts, 4000 / n, (n - 1) ** 2)) < 4


@pytest.mark.parametrize("n", [TABLE + 1, 131_072, 200_003, 1_000_003])
def test_a_computed_permutation_looks_like_a_random_one(n: int) -> None:
    spread, serial, fixed, adjacent, low = [], [], [], [], []
    for seed in range(20):
        rows = whole(shuffled(n, seed))
        places = np.histogram2d(np.arange(n), rows, 64, [[0, n], [0, n]])[0]
        spread.append(excess(places, n / 64**2, 63**2))
        serial.append(np.corrcoef(rows[:-1], rows[1:])[0, 1] * np.sqrt(n))
        fixed.append((rows == np.arange(n)).sum())
        adjacent.append((np.abs(np.diff(rows)) == 1).sum())
        pairs = np.bincount((rows[:-1] & 31) * 32 + (rows[1:] & 31), minlength=1024)
        low.append(excess(pairs, (n - 1) / 1024, 31**2))
    for normal in (spread, serial, low):
        assert abs(np.mean(normal)) < 1.2, "of twenty the mean is within 0.22"
        assert np.max(np.abs(normal)) < 5
    assert 0.3 < np.mean(fixed) < 2.0, "Poisson with a mean of 1"
    assert 1.0 < np.mean(adjacent) < 3.2, "Poisson with a mean of 2"


@pytest.mark.parametrize("n", [131_072, 2**20, *LARGE])
@pytest.mark.parametrize("lag", [1, 2, 256, 1024])
def test_rows_a_power_of_two_apart_are_unrelated(n: int, lag: int) -> None:
    steps = []
    for seed in range(10):
        rows = shuffled(n, seed).rows(0, 20_000 + lag)
        counts = np.histogram((rows[lag:] - rows[:-lag]) % n, 64, (0, n))[0]
        steps.append(excess(counts, 20_000 / 64, 63))
    assert abs(np.mean(steps)) < 1.6


@pytest.mark.parametrize("n", [1000, TABLE, TABLE + 1, 1_000_003])
def test_seeds_and_epochs_have_nothing_to_do_with_each_other(n: int) -> None:
    orders = [whole(shuffled(n, seed, epoch)) for seed in range(3) for epoch in range(3)]
    correlations = np.corrcoef(orders)[np.triu_indices(9, 1)] * np.sqrt(n)
    assert np.abs(correlations).max() < 4.5
    assert max((a == b).sum() for i, a in enumerate(orders) for b in orders[:i]) < 12, "places that agree by chance: 1"


def test_keys_are_those_of_splitmix64() -> None:
    assert _native.mix(0, 0) == 0xE220A8397B1DCDAF
    assert key_of(3, 4, 5) == 17531579520935874446


# ---- what a loader makes of it ----


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"shuffle": "window", "window": 600}, {"weights": np.ones(100)}]
)
def test_the_order_depends_on_the_seed_and_the_epoch_alone(options: dict[str, object]) -> None:
    expected = rows_of(**options, threads=0)
    for threads in (1, 3):
        assert rows_of(**options, threads=threads) == expected
    assert rows_of(**options, seed=1) != expected
    loader = nd.Loader(np.arange(100), batch_size=100, **options)
    first, second = (next(iter(loader)).tolist() for _ in range(2))
    assert first == expected
    assert second != expected


def test_the_order_does_not_depend_on_the_size_of_batches() -> None:
    orders = []
    for size in (1, 7, 100):
        loader = nd.Loader(np.arange(100), batch_size=size, shuffle=True)
        orders.append([row for batch in loader for row in batch.tolist()])
    assert orders[0] == orders[1] == orders[2]


def test_rows_come_as_they_lie_without_a_shuffle() -> None:
    loader = nd.Loader(np.arange(10), batch_size=4)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] == [b.tolist() for b in loader]


def test_drop_last_leaves_the_smaller_batch_out() -> None:
    loader = nd.Loader(np.arange(10), batch_size=4, drop_last=True)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loader) == 2


@pytest.mark.parametrize("shuffle", [False, True, "window"])
def test_an_epoch_of_no_rows_has_no_batches(shuffle: object) -> None:
    loader = nd.Loader(np.zeros((0, 3)), batch_size=4, shuffle=shuffle)
    assert len(loader) == 0
    assert list(loader) == []
    assert list(loader) == []
    assert loader.epoch == 2


# ---- windows ----


@pytest.mark.parametrize("n", [*range(40), 257, 1000])
def test_windows_have_every_row_once(n: int) -> None:
    for window in (1, 2, 3, 16, 64, 600):
        for block in (1, 2, 3, 8, 40):
            order = Windowed(n, window, block).of_epoch(5, n)
            rows = whole(order)
            assert sorted(rows) == list(range(n)), (n, window, block)
            for start in range(0, n, 7):
                assert np.array_equal(order.rows(start, min(start + 11, n)), rows[start : start + 11])


@pytest.mark.parametrize("n", [100_000, 100_007])
def test_a_window_is_made_of_its_blocks_and_nothing_else(n: int) -> None:
    window, block = 2560, 10
    rows = whole(Windowed(n, window, block).of_epoch(0, 0))
    for start in range(0, n, window):
        held = rows[start : start + window]
        blocks, counts = np.unique(held // block, return_counts=True)
        assert len(blocks) <= len(held) // block + 2
        assert (counts < block).sum() <= 3, "the first, the last and the smaller one"


def test_the_smaller_block_comes_at_any_turn() -> None:
    places = []
    for seed in range(1200):
        rows = whole(Windowed(53, 2, 10).of_epoch(seed, 0))
        places.append(np.flatnonzero(rows >= 50).min() // 2 * 2 // 10)  # the window of two, then the turn
    counts = np.bincount(places, minlength=6)
    assert abs(excess(counts, 200, 5)) < 4


def test_every_row_comes_to_every_place_of_the_windows_equally_often() -> None:
    counts = np.zeros((60, 60))
    for seed in range(6000):
        counts[np.arange(60), whole(Windowed(60, 20, 5).of_epoch(seed, 1))] += 1
    assert abs(excess(counts, 6000 / 60, 59**2)) < 6


def test_windows_of_a_trillion_rows_take_no_memory() -> None:
    n = 10**12
    order = Windowed(n, 10**6, 3906).of_epoch(1, 2)
    rows = np.concatenate([order.rows(start, start + 1000) for start in range(0, n - 1000, n // 50)])
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < n
    assert order.rows(10**11, 10**11 + 4).tolist() == [342266216284, 36618412156, 112993398734, 461805454785]


def test_batches_of_windows_over_sorted_labels_are_about_as_mixed_as_the_docstring_says() -> None:
    n, batch, window = 1_000_000, 256, 100_000
    labels = np.arange(n) * 10 // n
    shares = []
    for order in (Shuffled(n), Windowed(n, window, block_of(window, 1))):
        rows = whole(order.of_epoch(0, 0))[: n // batch * batch].reshape(-1, batch)
        assert np.mean([len(np.unique(labels[each])) for each in rows[:500]]) > 9.9, "a batch has all ten labels"
        shares.append((labels[rows] == 3).mean(1).std())
    assert 1.2 < shares[1] / shares[0] < 1.8


def test_the_window_is_256_mb_unless_it_is_given() -> None:
    assert default_window(1 << 10) == 1 << 18
    assert default_window(1 << 30) == 1024
    state = nd.Loader(np.zeros((4, 1 << 10), np.uint8), shuffle="window").state_dict()
    assert (state["window"], state["block"]) == (1 << 18, 1 << 10)
    assert nd.Loader(np.zeros(4), shuffle="window", window=np.int64(512)).state_dict()["window"] == 512


def test_blocks_are_made_of_whole_chunks() -> None:
    assert [block_of(window, 100) for window in (1, 256, 25_600, 30_000, 2_560_000)] == [100, 100, 100, 200, 10_000]


# ---- draws by weight ----


def test_weighted_draws_are_the_same_on_every_machine() -> None:
    order = weighted(6, [0, 1, 2, 0, 3.5, 0.1], None).of_epoch(5, 1)
    assert order.rows(0, 12).tolist() == [2, 4, 4, 2, 5, 2, 2, 4, 4, 1, 4, 4]
    assert order.rows(3, 6).tolist() == [2, 5, 2]


def test_rows_are_drawn_as_often_as_their_weights_say() -> None:
    weights = np.array([0.0, 1, 2, 0, 5, 0.5, 0])
    ours = np.bincount(weighted(7, weights, 100_000).of_epoch(0, 0).rows(0, 100_000), minlength=7)
    theirs = np.bincount(list(WeightedRandomSampler(weights, 100_000)), minlength=7)
    likely = weights > 0
    assert ours[~likely].sum() == 0
    for counts in (ours, theirs):
        assert abs(excess(counts[likely], 100_000 * weights[likely] / weights.sum(), 3)) < 4


@pytest.mark.parametrize("scale", [1e-310, 1.0, 1e308])
def test_weights_of_any_size_draw_the_same_rows(scale: float) -> None:
    weights = np.array([0, 1, 0.5, 1, 0]) * scale
    rows = weighted(5, weights, 2000).of_epoch(0, 0).rows(0, 2000)
    assert set(rows) == {1, 2, 3}


def test_a_row_of_no_weight_is_never_drawn_at_the_ends() -> None:
    ends = np.zeros(1001)
    ends[500] = 1
    assert set(weighted(1001, ends, 5000).of_epoch(0, 0).rows(0, 5000)) == {500}
    tiny = np.array([0.0, 1.0, 1e-320, 0.0])
    assert set(weighted(4, tiny, 5000).of_epoch(0, 0).rows(0, 5000)) == {1}


@pytest.mark.parametrize(
    "weights",
    [[1, 2, 3], (1.0, 2.0, 3.0), np.array([1, 2, 3], np.uint8), torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)],
)
def test_weights_are_any_numbers(weights: object) -> None:
    loader = nd.Loader(np.arange(3), batch_size=50, weights=weights, num_samples=50)
    (batch,) = loader
    assert len(batch) == 50
    assert set(batch.tolist()) == {0, 1, 2}
    assert batch.tolist() == next(iter(nd.Loader(np.arange(3), 50, weights=[1.0, 2, 3], num_samples=50))).tolist()


def test_as_many_rows_are_drawn_as_there_are_unless_it_is_said() -> None:
    assert len(nd.Loader(np.arange(9), weights=np.ones(9))) == 9
    assert len(nd.Loader(np.arange(9), weights=np.ones(9), num_samples=np.int32(4))) == 4
    assert len(nd.Loader(np.arange(9), batch_size=5, weights=np.ones(9), num_samples=24, drop_last=True)) == 4


@pytest.mark.parametrize(
    ("weights", "fact"),
    [
        ([1.0, -1, 2], r"weights\[1\] is -1.0"),
        ([1.0, 1, float("nan")], r"weights\[2\] is nan"),
        ([float("inf"), 1, 1], r"weights\[0\] is inf"),
        ([0, 0, 0], "no weight is above 0"),
        ([1, 2], r"shape \(2,\) and the data 3 rows"),
        ([[1, 2, 3]], r"shape \(1, 3\) and the data 3 rows"),
        ([1j, 1, 1], "holds complex128"),
        (["a", "b", "c"], "holds <U1"),
        ([[1], [1, 2], [3]], "no array of numbers but list"),
        (3.0, r"shape \(\)"),
        (torch.ones(3, device="meta"), "no array of numbers but Tensor"),
        (torch.ones(3).to_sparse(), "no array of numbers but Tensor"),
    ],
)
def test_weights_that_nothing_can_be_drawn_by_are_refused(weights: object, fact: str) -> None:
    with pytest.raises(nd.InvalidOptionError, match=fact) as error:
        nd.Loader(np.arange(3), weights=weights)
    assert "Hint: weights= takes one finite number of at least 0 for each row" in str(error.value)


# ---- options ----


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("batch_size", value) for value in (0, -1, True, 2.0, "2", None, np.float64(2))),
        *(("seed", value) for value in (1.5, True, None, "0", 2**64, -(2**63) - 1)),
        *(("shuffle", value) for value in (None, 1, "windows", "", [True])),
        *(("drop_last", value) for value in (None, 1, "no")),
    ],
)
def test_an_option_without_a_meaning_is_refused(option: str, value: object) -> None:
    with pytest.raises(nd.InvalidOptionError, match=f"Loader: {option}=.* has no meaning; expected "):
        nd.Loader(np.arange(3), **{option: value})


@pytest.mark.parametrize("value", [0, -3, True, 2.5, "4"])
def test_a_window_and_a_number_of_samples_are_counts(value: object) -> None:
    with pytest.raises(nd.InvalidOptionError, match=r"window=.* has no meaning"):
        nd.Loader(np.arange(3), shuffle="window", window=value)
    with pytest.raises(nd.InvalidOptionError, match=r"num_samples=.* has no meaning"):
        nd.Loader(np.arange(3), weights=np.ones(3), num_samples=value)


def test_options_of_numpy_types_are_taken() -> None:
    loader = nd.Loader(np.arange(6), np.int64(2), seed=np.uint64(2**64 - 1), shuffle=np.True_, drop_last=np.False_)
    assert len(loader) == 3
    assert (loader.seed, loader.batch_size) == (2**64 - 1, 2)


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**64 - 1])
def test_any_seed_that_torch_takes_is_taken(seed: int) -> None:
    assert sorted(rows_of(shuffle=True, seed=seed)) == list(range(100))


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"shuffle": True, "sampler": [0]}, "sampler= and shuffle= were both given"),
        ({"shuffle": "window", "sampler": [0]}, "sampler= and shuffle= were both given"),
        ({"weights": np.ones(3), "shuffle": True}, "weights= and shuffle= were both given"),
        ({"weights": np.ones(3), "sampler": [0]}, "sampler= and weights= were both given"),
        ({"batch_sampler": [[0]], "shuffle": True}, "batch_sampler= and shuffle= were both given"),
        ({"batch_sampler": [[0]], "sampler": [0]}, "batch_sampler= and sampler= were both given"),
        ({"batch_sampler": [[0]], "weights": np.ones(3)}, "batch_sampler= and weights= were both given"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "batch_sampler= and batch_size= were both given"),
        ({"batch_sampler": [[0]], "drop_last": True}, "batch_sampler= and drop_last= were both given"),
        ({"window": 3}, "window= goes with shuffle='window' alone"),
        ({"window": 3, "shuffle": True}, "window= goes with shuffle='window' alone"),
        ({"num_samples": 3}, "num_samples= goes with weights= alone"),
    ],
)
def test_options_that_exclude_each_other_are_both_named(options: dict[str, object], fact: str) -> None:
    with pytest.raises(nd.InvalidOptionError, match=fact):
        nd.Loader(np.arange(3), **options)


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("num_workers", 3, r"threads=4\."),
        ("pin_memory", True, "leave it away: device='cuda' "),
        ("dtype", "float32", "float_dtype='float32' casts floats, image=True makes planes"),
        ("prefetch_factor", 2, r"prefetch=2\."),
        ("persistent_workers", True, "leave it away: threads"),
        ("generator", torch.Generator(), r"seed=0\."),
        ("batchsize", 32, r"batch_size= is one\."),
        ("dataset", [1], r"data= is one\."),
        ("colour", 1, "data, batch_size, shuffle, .*, threads, prefetch.* are"),
    ],
)
def test_a_name_that_is_no_option_is_told_what_to_write_instead(option: str, value: object, hint: str) -> None:
    with pytest.raises(TypeError, match=rf"^Loader: {option}= is no option\. Hint: {hint}"):
        nd.Loader(np.arange(3), **{option: value})


def test_options_of_a_dataloader_have_hints_only_where_a_loader_has_not_the_same() -> None:
    of_torch = set(inspect.signature(torch.utils.data.DataLoader).parameters) - {"dataset"}
    own = inspect.signature(nd.Loader).parameters
    assert own["threads"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "options" not in own
    assert of_torch - set(own) <= set(OF_DATALOADER)
    assert not set(OF_DATALOADER) & set(own)


def test_an_epoch_is_a_number_of_at_least_0() -> None:
    loader = nd.Loader(np.arange(3))
    for epoch in (-1, True, 1.0, None):
        with pytest.raises(nd.InvalidOptionError, match=r"epoch=.* has no meaning"):
            loader.set_epoch(epoch)
    loader.set_epoch(np.int64(4))
    assert loader.epoch == 4


def test_seeds_next_to_each_other_do_not_begin_alike() -> None:
    firsts = [shuffled(10**9, seed).rows(0, 3).tolist() for seed in range(200)]
    assert all(a[0] != b[0] for a, b in pairwise(firsts))
    assert len({tuple(each) for each in firsts}) == 200
