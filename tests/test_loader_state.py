"""Where a `Loader` stands: epochs, states, and other loaders that go on from them."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

import ndtorch as nd

N = 103
ROWS = np.arange(N)

ORDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "sequential": dict,
    "shuffled": lambda: {"shuffle": True},
    "window": lambda: {"shuffle": "window", "window": 520},
    "weighted": lambda: {"weights": ROWS + 1.0, "num_samples": 130},
    "list": lambda: {"sampler": ROWS[::-1]},
    "sampler": lambda: {"sampler": RandomSampler(ROWS)},
    "generator": lambda: {"sampler": RandomSampler(ROWS, generator=torch.Generator())},
    "batches": lambda: {"batch_sampler": [[1, 2], [], [3], [4, 5, 6]], "batch_size": 1},
}


def make(order: str, **options: Any) -> nd.Loader:
    return nd.Loader(ROWS, **{"batch_size": 10, **ORDERS[order](), **options})


def batches(loop: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loop]


def flat(loop: Any) -> list[int]:
    return [row for batch in loop for row in batch.tolist()]


# ---- epochs ----


def test_every_loop_is_an_epoch() -> None:
    loader = make("shuffled")
    assert loader.epoch == 0
    orders = []
    for epoch in range(3):
        for batch in loader:
            assert loader.epoch == epoch
            orders.append(batch.tolist())
        assert loader.epoch == epoch + 1
    assert len({tuple(each) for each in orders}) == len(orders)


def test_a_loop_that_was_left_is_over() -> None:
    loader = make("shuffled")
    expected = [batches(make_at(epoch)) for epoch in range(2)]
    for batch in loader:
        assert batch.tolist() == expected[0][0]
        break
    assert loader.epoch == 0
    assert batches(loader) == expected[1]
    assert loader.epoch == 2


def make_at(epoch: int) -> nd.Loader:
    loader = make("shuffled")
    loader.set_epoch(epoch)
    return loader


def test_a_loop_begins_with_its_first_batch() -> None:
    loader = make("shuffled")
    unused = [iter(loader) for _ in range(5)]  # as frameworks do that look whether they can
    assert loader.epoch == 0
    assert flat(loader) == flat(make_at(0))
    assert flat(unused[0]) == flat(make_at(1))
    assert flat(unused[3]) == flat(make_at(2))


def test_loops_at_once_are_epochs_of_their_own() -> None:
    loader = make("shuffled")
    first, second = zip(*((a.tolist(), b.tolist()) for a, b in zip(loader, loader, strict=True)), strict=True)
    assert list(first) == batches(make_at(0))
    assert list(second) == batches(make_at(1))
    assert loader.epoch == 2
    assert batches(loader) == batches(make_at(2))


def test_the_state_is_that_of_the_last_loop_begun() -> None:
    loader = make("shuffled")
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    next(first)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 10)
    list(first)
    assert loader.state_dict() == state


@pytest.mark.parametrize("order", ["shuffled", "sampler"])
def test_set_epoch_makes_the_next_loop_that_epoch(order: str) -> None:
    expected = [batches(loader) for loader in [make(order)] for _ in range(4)]
    loader = make(order)
    for epoch in (3, 1, 1, 0):
        loader.set_epoch(epoch)
        assert loader.epoch == epoch
        assert batches(loader) == expected[epoch]
    assert batches(loader) == expected[1]


def test_whatever_state_there_is_can_be_loaded_and_no_epoch_follows_the_last_one() -> None:
    loader = make("shuffled")
    last = 2**63 - 2
    with pytest.raises(nd.InvalidOptionError, match=f"epoch={last + 1} has no meaning; expected at most {last}"):
        loader.set_epoch(last + 1)
    for left_early in (True, False):
        loader.set_epoch(last)
        loop = iter(loader)
        next(loop)
        if not left_early:
            assert len(list(loop)) == len(loader) - 1
            other = make("shuffled")
            other.load_state_dict(loader.state_dict())
            assert other.state_dict() == loader.state_dict()
            with pytest.raises(nd.InvalidOptionError, match=f"expected at most {last}"):
                next(iter(other))
        with pytest.raises(nd.InvalidOptionError, match=f"expected at most {last}"):
            next(iter(loader))
    loader.set_epoch(0)
    assert batches(loader) == batches(make("shuffled"))


def test_set_epoch_begins_an_epoch_again_that_was_left() -> None:
    loader = make("shuffled")
    for epoch in range(3):
        loader.set_epoch(epoch)
        whole = batches(make_at(epoch))
        assert batches(islice(loader, 3)) == whole[:3]
        loader.set_epoch(epoch)
        assert batches(loader) == whole


def test_set_epoch_leaves_an_epoch_where_a_state_has_put_it() -> None:
    loader = make("shuffled")
    loader.set_epoch(2)
    loop = iter(loader)
    next(loop)
    state, rest = loader.state_dict(), batches(loop)
    for epoch, expected in ((2, rest), (3, batches(make_at(3)))):
        other = make("shuffled")
        other.load_state_dict(state)
        other.set_epoch(epoch)
        assert batches(other) == expected


def test_the_length_is_that_of_a_whole_epoch() -> None:
    loader = make("shuffled")
    assert len(loader) == 11
    next(iter(loader))
    other = make("shuffled")
    other.load_state_dict(loader.state_dict())
    assert len(other) == 11
    assert len(list(other)) == 10


# ---- states ----


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [0, 2])
def test_an_epoch_goes_on_bit_for_bit_from_every_batch(order: str, threads: int) -> None:
    loader = make(order, threads=threads)
    list(loader)
    loop = iter(loader)
    states = [(0, loader.state_dict())]
    seen = []
    for batch in loop:
        seen.append(batch.tolist())
        states.append((len(seen), loader.state_dict()))
    after = batches(loader)
    for taken, state in states:
        other = make(order, threads=2 - threads, seed=77)
        other.load_state_dict(pickle.loads(pickle.dumps(state)))
        rest = seen[taken:] or after
        assert batches(other) == rest, taken
        if rest is not after:
            assert batches(other) == after


@pytest.mark.parametrize("order", ORDERS)
def test_a_state_fits_into_json_and_into_a_safe_checkpoint(order: str) -> None:
    loader = make(order)
    next(iter(loader))
    state = loader.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < (10_000 if order == "generator" else 400)
    checkpoint = BytesIO()
    torch.save(state, checkpoint)
    checkpoint.seek(0)
    assert torch.load(checkpoint, weights_only=True) == state


@pytest.mark.parametrize("order", ORDERS)
def test_the_keys_of_a_state_are_always_the_same(order: str) -> None:
    # torch.distributed.checkpoint looks up the keys that the loader to be restored has
    loader = make(order)
    keys = list(loader.state_dict())
    for _ in loader:
        assert list(loader.state_dict()) == keys
    assert list(loader.state_dict()) == keys
    other = make(order)
    other.load_state_dict(loader.state_dict())
    assert other.state_dict() == loader.state_dict()


def test_a_state_is_not_changed_by_what_comes_later() -> None:
    loader = make("generator")
    loop = iter(loader)
    next(loop)
    state = loader.state_dict()
    kept = copy.deepcopy(state)
    list(loop)
    list(loader)
    loader.load_state_dict(state)
    list(loader)
    assert state == kept


def test_what_was_gathered_ahead_does_not_count() -> None:
    loader = make("shuffled", threads=3, prefetch=8)
    loop = iter(loader)
    assert loader.state_dict()["position"] == 0
    next(loop)
    for _ in range(100):  # however far the threads are by now
        assert loader.state_dict()["position"] == 10
    next(loop)
    assert loader.state_dict()["position"] == 20


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_state_after_the_last_batch_begins_the_next_epoch(drop_last: bool) -> None:
    loader = make("shuffled", drop_last=drop_last)
    for _ in loader:
        state = loader.state_dict()
        inside = loader.epoch
    assert inside == 0
    assert (state["epoch"], state["position"]) == (1, 0)
    assert state == loader.state_dict()
    other = make("shuffled")
    other.load_state_dict(state)
    assert batches(other) == batches(make_at(1))


def test_a_loop_that_is_left_after_its_last_batch_is_one_epoch() -> None:
    loader = make("shuffled")
    loop = iter(loader)
    for _ in range(len(loader)):  # and never sees the end, as frameworks that count do
        next(loop)
    assert batches(loader) == batches(make_at(1))


def test_the_seed_of_a_state_is_adopted() -> None:
    loader = make("shuffled", seed=5)
    next(iter(loader))
    other = make("shuffled", seed=6)
    other.load_state_dict(loader.state_dict())
    assert other.seed == 5
    assert (batches(other), batches(other)) == (batches(make_after(loader)), batches(loader))


def make_after(loader: nd.Loader) -> nd.Loader:
    other = make("shuffled")
    other.load_state_dict(loader.state_dict())
    return other


def test_a_loop_that_runs_goes_on_when_a_state_is_loaded_and_no_longer_counts() -> None:
    loader = make("shuffled")
    start = loader.state_dict()
    expected = batches(make("shuffled"))
    seen = []
    for batch in loader:
        seen.append(batch.tolist())
        if len(seen) == 3:
            loader.load_state_dict(start)
    assert seen == expected
    assert loader.state_dict() == start
    assert batches(loader) == expected


@pytest.mark.parametrize("order", ["sequential", "shuffled", "window", "weighted", "list", "sampler", "generator"])
@pytest.mark.parametrize("size", [1, 7, 200])
def test_an_epoch_goes_on_in_batches_of_another_size(order: str, size: int) -> None:
    loader = make(order)
    loop = iter(loader)
    next(loop)
    next(loop)
    other = make(order, batch_size=size)
    other.load_state_dict(loader.state_dict())
    rest = batches(other)
    assert all(len(batch) == size for batch in rest[:-1])
    assert [row for batch in rest for row in batch] == flat(loop)


def test_an_epoch_of_which_too_little_is_left_is_over_at_once() -> None:
    loader = make("shuffled")
    loop = iter(loader)
    for _ in range(10):
        next(loop)
    other = make("shuffled", batch_size=50, drop_last=True)
    other.load_state_dict(loader.state_dict())
    assert list(other) == []
    assert other.epoch == 1
    assert flat(other) == flat(make_at(1))[:100]


@settings(max_examples=60)
@given(
    n=st.integers(1, 300),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    shuffle=st.sampled_from([False, True, "window"]),
)
def test_nothing_is_lost_or_seen_twice_however_often_an_epoch_is_interrupted(
    n: int, sizes: list[int], shuffle: bool | str
) -> None:
    state, seen = None, []
    for size in sizes:
        loader = nd.Loader(np.arange(n), size, shuffle=shuffle, threads=0)
        if state is not None:
            loader.load_state_dict(state)
        if loader.epoch:
            break
        seen += flat(islice(loader, 2))
        state = loader.state_dict()
    else:
        if state["epoch"] == 0:
            seen += flat(loader_at(state, n, shuffle))
    assert sorted(seen) == list(range(n))


def loader_at(state: dict[str, Any], n: int, shuffle: bool | str) -> nd.Loader:
    loader = nd.Loader(np.arange(n), 9, shuffle=shuffle)
    loader.load_state_dict(state)
    return loader


_ELSEWHERE = """
import json, sys
import numpy as np
import ndtorch as nd

loader = nd.Loader(np.arange(103), batch_size=10, shuffle="window", window=520, seed=9, threads=1)
loader.load_state_dict(json.loads(sys.argv[1]))
print(json.dumps([batch.tolist() for batch in loader]))
"""


def test_an_epoch_goes_on_in_another_process() -> None:
    loader = make("window")
    loop = iter(loader)
    next(loop)
    state = json.dumps(loader.state_dict())
    found = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, state], capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(found.stdout) == batches(loop)


# ---- states that do not fit ----


@pytest.mark.parametrize(("one", "other"), [*pairwise(ORDERS), ("batches", "sampler"), ("window", "shuffled")])
def test_a_state_of_another_order_is_refused(one: str, other: str) -> None:
    state = make(one).state_dict()
    loader = make(other)
    if state["order"] == loader.state_dict()["order"]:
        expected = "the state is not of sampler=RandomSampler"
    else:
        expected = f"the state differs from this loader in 'order'; expected .*, got '{state['order']}'"
    with pytest.raises(nd.InvalidOptionError, match=expected):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("rows", {}, {"data": ROWS[:90]}),
        ("window", {"shuffle": "window", "window": 520}, {"shuffle": "window", "window": 640}),
        ("weights", {"weights": ROWS}, {"weights": ROWS + 1}),
        ("samples", {"weights": ROWS}, {"weights": ROWS, "num_samples": 7}),
        ("numbers", {"sampler": ROWS}, {"sampler": ROWS[::-1]}),
        ("sampler", {"sampler": RandomSampler(ROWS)}, {"sampler": SequentialSampler(ROWS)}),
        (
            "sampler",
            {"batch_sampler": BatchSampler(ROWS.tolist(), 3, False)},
            {"batch_sampler": [[1]]},
        ),
    ],
)
def test_a_state_that_does_not_fit_names_what_differs(key: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    state = nd.Loader(**{"data": ROWS, **one}).state_dict()
    loader = nd.Loader(**{"data": ROWS, "seed": 3, **other})
    next(iter(loader))
    before = loader.state_dict()
    with pytest.raises(nd.InvalidOptionError, match=f"the state differs from this loader in {key!r}; expected .*, got"):
        loader.load_state_dict(state)
    assert loader.state_dict() == before, "a state that was refused changes nothing"
    assert loader.seed == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "the state differs from this loader in 'version'; expected 1, got 2"),
        ({"version": None}, "in 'version'; expected 1, got None"),
        ({"epoch": -1}, "epoch=-1 has no meaning"),
        ({"epoch": 1.5}, "epoch=1.5 has no meaning"),
        ({"epoch": True}, "epoch=True has no meaning"),
        ({"position": "3"}, "position='3' has no meaning"),
        ({"position": -1}, "position=-1 has no meaning"),
        ({"position": 104}, "the state stands at position 104; expected at most 103, got 104"),
        ({"seed": None}, "seed=None has no meaning"),
        ({"rows": np.arange(3)}, "in 'rows'; expected 103, got"),
    ],
)
def test_a_state_with_junk_in_it_is_refused(changes: dict[str, Any], message: str) -> None:
    loader = make("shuffled")
    before = loader.state_dict()
    with pytest.raises(nd.InvalidOptionError, match=message):
        loader.load_state_dict({**before, **changes})
    assert loader.state_dict() == before


@pytest.mark.parametrize("key", ["version", "epoch", "position", "seed", "order", "rows"])
def test_a_state_without_one_of_its_keys_is_refused(key: str) -> None:
    loader = make("shuffled")
    state = loader.state_dict()
    del state[key]
    with pytest.raises(
        nd.InvalidOptionError, match=f"the state has no '{key}'. Hint: load_state_dict takes what state"
    ):
        loader.load_state_dict(state)


@pytest.mark.parametrize("junk", [None, 3, "state", [], {}, [("version", 1)], torch.zeros(3)])
def test_what_is_no_state_is_refused(junk: object) -> None:
    with pytest.raises(nd.InvalidOptionError, match="Hint: load_state_dict takes what state_dict gave"):
        make("shuffled").load_state_dict(junk)


def test_a_position_behind_the_end_of_a_sampler_is_refused_when_its_length_is_known() -> None:
    loader = make("sampler")
    loader.load_state_dict({**loader.state_dict(), "position": 104})
    with pytest.raises(nd.InvalidOptionError, match="the state stands at position 104; expected at most 103"):
        next(iter(loader))


# ---- the conventions of others ----


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
def test_a_loader_is_stateful_as_torchdata_has_it() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    from torchdata.stateful_dataloader.stateful import Stateful

    def trained(loader: Any) -> list[int]:
        assert isinstance(loader, Stateful)
        return flat(loader)

    def interrupted(loader: Any, fresh: Any) -> tuple[list[int], list[int], list[int]]:
        begun = flat(islice(loader, 4))
        state = loader.state_dict()
        fresh.load_state_dict(state)
        return begun, trained(fresh), trained(fresh)

    data = torch.utils.data.TensorDataset(torch.arange(N))
    options = {"batch_size": 10, "collate_fn": lambda samples: torch.stack([each[0] for each in samples])}
    theirs = interrupted(*(stateful.StatefulDataLoader(data, **options) for _ in range(2)))
    assert interrupted(make("sequential"), make("sequential")) == theirs
    begun, rest, _ = interrupted(make("shuffled"), make("shuffled", seed=3))
    assert begun + rest == flat(make("shuffled"))


def test_a_loader_is_a_node_of_torchdata() -> None:
    nodes = pytest.importorskip("torchdata.nodes", reason="torchdata is not installed")

    def pipeline() -> Any:
        return nodes.Loader(nodes.IterableWrapper(make("shuffled")))

    one, other = pipeline(), pipeline()
    begun = flat(islice(one, 4))
    other.load_state_dict(one.state_dict())
    assert begun + flat(other) == flat(make("shuffled"))


def test_a_trainer_that_looks_counts_and_restores_as_lightning_does() -> None:
    # lightning.pytorch: iter() to see whether it can, states loaded, iter() by the fetcher, next() as often as len says
    def fit(loader: nd.Loader, state: dict[str, Any] | None, most: int, epoch: int) -> tuple[list[list[int]], Any]:
        iter(loader)
        if state is not None:
            loader.load_state_dict(state)
        loop = iter(loader)
        if state is None:
            loader.set_epoch(epoch)
            loop = iter(loader)
        seen = []
        for _ in range(most):
            seen.append(next(loop).tolist())
        return seen, loader.state_dict()

    whole = batches(make_at(2))
    begun, state = fit(make("shuffled"), None, 4, 2)
    rest, state = fit(make("shuffled"), state, len(make("shuffled")) - 4, 2)
    assert begun + rest == whole
    assert (state["epoch"], state["position"]) == (3, 0)


def test_a_loader_has_no_attributes_that_frameworks_take_for_those_of_a_data_loader() -> None:
    # With dataset= Lightning would make the loader anew from its arguments, and refuse to (overfit_batches)
    loader = make("sampler")
    assert not any(hasattr(loader, name) for name in ("dataset", "sampler", "batch_sampler"))
    assert (loader.batch_size, loader.drop_last, loader.rank, loader.world_size) == (10, False, 0, 1)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # it is told so by no_dist=True
def test_distributed_checkpoints_hold_the_state(tmp_path: Any) -> None:
    checkpoint = pytest.importorskip("torch.distributed.checkpoint", reason="torch has no distributed package")
    loader, other = make("generator"), make("generator", seed=8)
    loop = iter(loader)
    next(loop)
    checkpoint.save({"loader": loader}, checkpoint_id=tmp_path, no_dist=True)
    checkpoint.load({"loader": other}, checkpoint_id=tmp_path, no_dist=True)
    assert batches(other) == batches(loop)
