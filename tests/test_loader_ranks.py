"""How a `Loader` deals epochs to processes: arithmetic by brute force, and two real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

import ndtorch as nd
from ndtorch.loader import agreement
from ndtorch.loader.dealing import Batched, Dealing
from ndtorch.loader.ranks import Ranks

N = 203
ORDERS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "shuffled": {"shuffle": True},
    "window": {"shuffle": "window", "window": 520},
    "list": {"sampler": list(range(N))[::-1]},
    "weighted": {"weights": np.arange(N), "num_samples": 250},
}


def dealt(dealing: Dealing) -> list[list[list[int]]]:
    """The places of every rank in every step."""
    return [
        [list(range(*dealing.places(step, rank))) for rank in range(dealing.world_size)]
        for step in range(dealing.steps)
    ]


def dealings() -> list[Dealing]:
    found = []
    for total, size, ranks, drop in product(range(28), (1, 2, 3, 5, 8), (1, 2, 3, 4, 7), (False, True)):
        for start in {0, total // 3, total}:
            try:
                found.append(Dealing(total, size, ranks, drop, start))
            except nd.InvalidOptionError:
                continue
    return found


def test_every_place_is_dealt_once_and_every_rank_takes_every_step() -> None:
    for dealing in dealings():
        steps = dealt(dealing)
        places = [place for step in steps for share in step for place in share]
        left = dealing.total - dealing.start
        width = dealing.batch_size * dealing.world_size
        expected = left // width * width if dealing.drop_last else left
        assert places == list(range(dealing.start, dealing.start + expected)), dealing
        for step in steps:
            sizes = [len(share) for share in step]
            assert 0 < min(sizes) <= max(sizes) <= dealing.batch_size, dealing
            assert max(sizes) - min(sizes) <= 1, dealing
        assert all(len(share) == dealing.batch_size for step in steps[:-2] for share in step), dealing


def test_steps_are_as_few_as_can_be() -> None:
    for dealing in dealings():
        width = dealing.batch_size * dealing.world_size
        left = dealing.total - dealing.start
        assert dealing.steps == (left // width if dealing.drop_last else -(-left // width)), dealing


def test_the_rest_of_an_epoch_is_dealt_as_the_whole_would_have_been() -> None:
    for dealing in dealings():
        steps = dealt(dealing)
        for step in range(dealing.steps + 1):
            at = dealing.position(step)
            rest = Dealing(dealing.total, dealing.batch_size, dealing.world_size, dealing.drop_last, at)
            assert dealt(rest) == steps[step:], (dealing, step)


def test_only_what_cannot_be_dealt_is_refused() -> None:
    for total, size, ranks in product(range(28), (1, 2, 3, 5, 8), (1, 2, 3, 4, 7)):
        width = size * ranks
        steps = -(-total // width)
        needed = (steps > 0) * ((steps - 2) * width + 2 * ranks if steps > 1 else ranks)
        try:
            Dealing(total, size, ranks)
        except nd.InvalidOptionError:
            assert total < needed, (total, size, ranks)
        else:
            assert total >= needed, (total, size, ranks)


def test_batches_of_any_sizes_are_steps() -> None:
    bounds = np.array([0, 3, 3, 4])
    for start in range(4):
        dealing = Batched(bounds, start)
        assert dealing.steps == 3 - start
        assert [dealing.places(step, 0) for step in range(dealing.steps)] == [(0, 3), (3, 3), (3, 4)][start:]
        assert [dealing.position(step) for step in range(dealing.steps + 1)] == list(range(start, 4))


# ---- loaders ----


def shares(world_size: int, state: dict[str, Any] | None = None, **options: Any) -> list[list[list[int]]]:
    """The batches of every rank."""
    found = []
    for rank in range(world_size):
        loader = nd.Loader(np.arange(N), **{"batch_size": 8, **options}, rank=rank, world_size=world_size)
        if state is not None:
            loader.load_state_dict(state)
        else:
            assert (loader.rank, loader.world_size) == (rank, world_size)
        found.append([batch.tolist() for batch in loader])
        assert state is not None or len(found[-1]) == len(loader)
    assert len({len(each) for each in found}) == 1, "every rank takes the same number of steps"
    return found


def in_order(found: list[list[list[int]]]) -> list[int]:
    """All rows of all ranks, step by step."""
    return [row for step in zip(*found, strict=True) for share in step for row in share]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_order_that_one_process_has(order: str, world_size: int) -> None:
    alone = [row for batch in nd.Loader(np.arange(N), 8, **ORDERS[order]) for row in batch.tolist()]
    assert in_order(shares(world_size, **ORDERS[order])) == alone
    dropped = in_order(shares(world_size, **ORDERS[order], drop_last=True))
    assert dropped == alone[: len(alone) // (8 * world_size) * 8 * world_size]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("before", "after"), [(1, 4), (3, 1), (2, 5), (4, 2)])
def test_an_epoch_goes_on_with_another_number_of_processes(order: str, before: int, after: int) -> None:
    options = ORDERS[order]
    begun, states = [], []
    for rank in range(before):
        loader = nd.Loader(np.arange(N), 8, **options, rank=rank, world_size=before)
        begun.append([batch.tolist() for batch in islice(loader, 3)])
        states.append(loader.state_dict())
    assert all(state == states[0] for state in states), "any rank's state is that of all"
    rest = in_order(shares(after, states[-1], **options, batch_size=7))
    whole = [row for batch in nd.Loader(np.arange(N), 8, **options) for row in batch.tolist()]
    assert in_order(begun) + rest == whole


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"rank": 0}, "rank= was given without world_size=. Hint: give both or neither"),
        ({"world_size": 2}, "world_size= was given without rank="),
        ({"rank": 2, "world_size": 2}, "rank=2 is none of world_size=2; expected 0 to 1, got 2"),
        ({"rank": -1, "world_size": 2}, "rank=-1 has no meaning; expected a whole number of at least 0"),
        ({"rank": 0, "world_size": 0}, "world_size=0 has no meaning; expected a whole number of at least 1"),
        ({"rank": True, "world_size": 2}, "rank=True has no meaning"),
        ({"rank": 0, "world_size": True}, "world_size=True has no meaning"),
        ({"rank": 0.0, "world_size": 2}, "rank=0.0 has no meaning"),
        ({"rank": 0, "world_size": "2"}, "world_size='2' has no meaning"),
    ],
)
def test_ranks_without_a_meaning_are_refused(options: dict[str, Any], fact: str) -> None:
    with pytest.raises(nd.InvalidOptionError, match=fact):
        nd.Loader(np.arange(9), **options)


def test_ranks_may_be_numbers_of_numpy() -> None:
    loader = nd.Loader(np.arange(4), rank=np.int32(1), world_size=np.uint8(2))
    assert [batch.tolist() for batch in loader] == [[1], [3]]


def test_too_few_samples_for_the_ranks_are_refused_when_the_loader_is_made() -> None:
    with pytest.raises(
        nd.InvalidOptionError, match="3 samples cannot be dealt to 2 ranks in equal numbers of steps of 1"
    ):
        nd.Loader(np.arange(3), rank=0, world_size=2)
    assert len(nd.Loader(np.arange(3), rank=0, world_size=2, drop_last=True)) == 1


@pytest.mark.parametrize(
    "options",
    [{"sampler": RandomSampler(range(9))}, {"batch_sampler": BatchSampler(SequentialSampler(range(9)), 2, False)}],
)
def test_a_sampler_is_not_dealt_to_ranks(options: dict[str, Any]) -> None:
    with pytest.raises(nd.InvalidOptionError, match="a sampler draws for one process, and world_size=2 was given"):
        nd.Loader(np.arange(9), **options, rank=0, world_size=2)
    assert len(nd.Loader(np.arange(9), **options, rank=0, world_size=1)) in (5, 9)


# ---- torch.distributed ----


def test_the_caller_knows_better_than_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    found = nd.Loader(np.arange(9))
    assert (found.rank, found.world_size) == (1, 3)
    told = nd.Loader(np.arange(9), rank=0, world_size=1)
    assert (told.rank, told.world_size) == (0, 1)
    listed = nd.Loader(np.arange(9), sampler=[1, 2, 3])
    assert [batch.tolist() for batch in listed] == [[2]]
    sampled = nd.Loader(np.arange(9), sampler=SequentialSampler(range(9)))
    assert (sampled.rank, sampled.world_size) == (0, 1)


_PROCESS = """
import json, sys
from itertools import islice
import numpy as np
import torch.distributed
import ndtorch as nd

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
data = nd.read(sys.argv[3])["data"] if sys.argv[3] else np.arange(203)
loader = nd.Loader(data, batch_size=8, shuffle=True)
assert (loader.rank, loader.world_size) == (rank, 2)
first = [batch.tolist() for batch in loader]
torch.distributed.barrier()
begun = [batch.tolist() for batch in islice(loader, 3)]
steps = [None, None]
torch.distributed.all_gather_object(steps, len(first))
torch.distributed.destroy_process_group()
print(json.dumps([first, begun, loader.state_dict(), steps]))
"""


@pytest.mark.once
@pytest.mark.parametrize("is_in_shards", [False, True], ids=["memory", "shards"])
def test_two_processes_share_an_epoch_and_three_others_go_on(is_in_shards: bool, tmp_path: Path) -> None:
    data: Any = np.arange(N)
    if is_in_shards:
        np.save(tmp_path / "data.npy", data)
        nd.convert_many(tmp_path / "data.npy", tmp_path / "shards", shard_size="160B")
        data = nd.read(tmp_path / "shards")["data"]
        assert len(data.stored.layout) == 11
    source = str(tmp_path / "shards") if is_in_shards else ""
    command = [sys.executable, "-c", _PROCESS]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), source], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, begun, states, steps = zip(*found, strict=True)
    assert steps[0] == steps[1] == [13, 13]
    loader = nd.Loader(data, 8, shuffle=True)
    assert in_order(list(first)) == [row for batch in loader for row in batch.tolist()]
    assert sorted(in_order(list(first))) == list(range(N))
    second = [row for batch in loader for row in batch.tolist()]
    assert states[0] == states[1]
    assert in_order(list(begun)) + in_order(shares(3, states[1], shuffle=True)) == second


_DIFFERING = """
import json, sys, datetime
import numpy as np
import torch.distributed
import ndtorch as nd

rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=120)
)
data = np.arange(203)
alone = [nd.Loader(data, 8) for _ in range(rank)]  # made by one process and never looped over: waited for by nobody
shards = [nd.read(f"{folder}/{name}/shards")["data"] for name in ("one", "other")]

def loop(data, batch_size=8, state=None, **options):
    loader = nd.Loader(data, batch_size, shuffle=True, **options)
    if state:
        loader.load_state_dict(state)
    try:
        return [len(list(loader)), len(list(loader))]
    except nd.InvalidOptionError as error:
        return str(error)

state = {**nd.Loader(data, shuffle=True, rank=0, world_size=1).state_dict(), "position": 48}
found = [
    loop(data),
    loop(data, seed=rank),
    loop(data[: 203 - rank]),
    loop(data, state=state if rank else None),
    loop(data.astype("float32") if rank else data),
    loop(shards[0]),
    loop(shards[rank]),
    loop(data, 8 + rank),
    loop(data),
]
if rank == 0:  # one that is its own is waited for by nobody
    found.append(len(list(nd.Loader(data, 8, rank=0, world_size=1))))
torch.distributed.barrier()
print(json.dumps(found))
"""


@pytest.mark.once
def test_processes_that_differ_all_hear_in_what(tmp_path: Path) -> None:
    for name, rows in (("one", 20), ("other", 30)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "data.npy", np.arange(N))
        nd.convert_many(tmp_path / name / "data.npy", tmp_path / name / "shards", shard_size=8 * rows)
    command = [sys.executable, "-c", _DIFFERING]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), str(tmp_path)], stdout=-1, text=True)
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert found[0].pop() == 26
    assert found[0] == found[1], "all hear the same"
    agreed, seed, rows, state, dtype, same, shards, size, again = found[0]
    assert agreed == same == again == [13, 13]
    assert "rank 1 differs from rank 0 in 'seed': expected seed 0, got seed 1" in seed.replace(
        "; expected", ": expected"
    )
    for text, names in (
        (rows, "'rows'"),
        (state, "'position', 'steps'"),
        (dtype, "'data'"),
        (shards, "'data'"),
        (size, "'batch_size', 'steps'"),
    ):
        assert f"rank 1 differs from rank 0 in {names}" in text
    assert "in 11 shards" in shards
    assert "in 7 shards" in shards


def test_a_loop_that_one_process_alone_begins_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.05))
    monkeypatch.setattr(agreement, "_store", lambda: store)
    with pytest.raises(nd.NdtorchError, match="rank 1, 2 has not begun the loop that rank 0 begins"):
        agreement.Agreement(Ranks(0, 3)).check({"seed": 0})
