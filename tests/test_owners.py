"""Arrays outlive a move of their tensor (pytorch#51849), where the memory is an array's or a block of our own.

`Tensor.share_memory_`, a queue and spawned workers give a tensor other memory and free the old. All of this holds with
``NDTORCH_FAST=0`` too, but for tensors of `torch.from_numpy` itself.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares
from interpreters import Interpreters

import ndtorch as nd
from ndtorch import _bridge

IS_FAST = os.environ.get("NDTORCH_FAST") != "0"
only_fast = pytest.mark.skipif(not IS_FAST, reason="NDTORCH_FAST=0")
PAGES = 1 << 26  # bytes: so large a block is a mapping of its own, gone as soon as it is freed
CRASHES = {-signal.SIGSEGV, -signal.SIGBUS}


def alone(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter where freed memory is overwritten at once."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"MALLOC_PERTURB_": "165"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def printed(code: str, **env: str) -> str:
    done = alone(code, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def interpreters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreters]:
    """Interpreters where freed memory is overwritten at once."""
    with Interpreters("", tmp_path_factory.mktemp("said"), MALLOC_PERTURB_="165") as running:
        yield running


# In a process where no other thread maps anything at a place that has just become free, and nor does the look.
MAPPED = """
import ctypes, mmap
import numpy as np, torch, ndtorch as nd

mincore, core = ctypes.CDLL(None).mincore, ctypes.c_char()

def is_mapped(where):
    return mincore(ctypes.c_void_p(where & -mmap.PAGESIZE), ctypes.c_size_t(1), ctypes.byref(core)) == 0
"""


# ---- the trap, and the answer ----


@pytest.mark.once
@pytest.mark.parametrize("make", ["torch.from_numpy(np.full(N, 7.0))", "torch.full((N,), 7.0, dtype=torch.float64)"])
def test_on_plain_torch_the_array_dangles(make: str, interpreters: Interpreters) -> None:
    """Open since 2021; when this fails the trap is history, and so are the owners and the note of `explain`."""
    code = f"import numpy as np, torch\nN = SIZE\nt = {make}\nb = t.numpy()\nt.share_memory_()\nprint((b == 7).all())"
    assert interpreters.run(code.replace("SIZE", str(PAGES // 8)))[0] in CRASHES
    assert interpreters.run(code.replace("SIZE", "1000")) == (0, "")
    assert interpreters.printed == "False"


ANSWER = """
import numpy as np, torch, ndtorch as nd
from ndtorch import _bridge

def full(n, dtype=np.float64):
    return np.full(n, 7, dtype)

def read_only(array):
    array.flags.writeable = False
    return array

makers = {
    "array": lambda n: nd.to_torch(full(n)),
    "part of an array": lambda n: nd.to_torch(full(2 * n)[3 : n + 3]),
    "every other": lambda n: nd.to_torch(full(2 * n)[::2]),
    "list": lambda n: nd.to_torch([full(n), full(n)])[1],
    "structure": lambda n: nd.to_torch({"x": full(n)})["x"],
    "bfloat16": lambda n: nd.to_torch(full(n, nd.to_numpy(torch.ones(1, dtype=torch.bfloat16)).dtype)),
    "read-only": lambda n: nd.to_torch(read_only(full(n)), readonly="share"),
    "copy": lambda n: nd.to_torch(full(n), copy=True),
    "cast": lambda n: nd.to_torch(full(n), dtype=torch.float32),
    "exact cast": lambda n: nd.to_torch(full(n), dtype=torch.float32, casting="exact"),
    "reversed": lambda n: nd.to_torch(full(n)[::-1]),
    "stack": lambda n: nd.stack([full(n // 2), full(n // 2)]).view(-1),
    "stack with a cast": lambda n: nd.stack([full(n // 2), full(n // 2, np.float32)], dtype=torch.float32).view(-1),
    "collate": lambda n: nd.collate([{"x": full(n // 2)}, {"x": full(n // 2)}])["x"].view(-1),
    "image": lambda n: nd.image_to_torch(full((n // 12, 4, 3), np.uint8), scale=False).reshape(-1),
    "out and back": lambda n: nd.to_torch(nd.to_numpy(nd.to_torch(full(n)))),
    "out and back, copied": lambda n: nd.to_torch(nd.to_numpy(nd.to_torch(full(n), copy=True))[1:]),
}
if _bridge.status().fast:
    makers["torch.from_numpy"] = lambda n: torch.from_numpy(full(n))
    makers["torch.as_tensor"] = lambda n: torch.as_tensor(full(n))
views = {
    "whole": lambda t: t,
    "slice": lambda t: t[5:],
    "last": lambda t: t[-1:],
    "slice of a slice": lambda t: t[5:][7:-3],
    "columns": lambda t: t[: t.numel() // 4 * 4].view(-1, 4)[:, 1:3],
    "transposed": lambda t: t[: t.numel() // 4 * 4].view(4, -1).T,
    "0-d": lambda t: t[11],
    "expanded": lambda t: t[3:4].expand(5),
    "strided": lambda t: t.as_strided((3, 2), (1, 4), 2),
    "integers": lambda t: t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize]),
    "detached": lambda t: t.detach(),
    "requires grad": lambda t: t.requires_grad_(),
    "parameter": lambda t: torch.nn.Parameter(t),
}
def traced(t):
    with nd.trace():
        return nd.to_numpy(t)
converts = [nd.to_numpy, lambda t: nd.to_numpy([t])[0], lambda t: nd.to_numpy({"x": t})["x"], traced,
            lambda t: _bridge.alias(t, writable=True)]

def check(name, tensor, view, convert):
    seen = view(tensor)
    assert not any("51849" in note for note in nd.explain(seen, to="numpy").notes), name
    array = convert(seen)
    values = array.copy()
    tensor.share_memory_()
    assert not nd.shares_memory(array, tensor), name
    with torch.no_grad():
        tensor.fill_(9)
    fillers = [torch.full((tensor.numel(),), 3.0) for _ in range(2)]
    assert (array == values).all(), name
    del seen, tensor
    assert (array == values).all(), name
    if array.flags.writeable:
        array[...] = 8
        assert (array == 8).all(), name

for make_name, make in makers.items():
    for view_name, view in views.items():
        for convert in converts:
            check((make_name, view_name), make(1000), view, convert)
for make_name in ("array", "copy", "torch.from_numpy"):
    if make_name in makers:
        check((make_name, "pages"), makers[make_name](PAGES // 8), lambda t: t[::4096], nd.to_numpy)
print("ok")
"""


def test_arrays_over_memory_with_an_owner_stay_valid_when_torch_moves_the_tensor(interpreters: Interpreters) -> None:
    assert interpreters.run(ANSWER.replace("PAGES", str(PAGES))) == (0, "")
    assert interpreters.printed == "ok"


def test_a_moved_tensor_and_its_old_arrays_part() -> None:
    a = np.arange(6.0)
    t = nd.to_torch(a)
    b, view = nd.to_numpy(t), nd.to_numpy(t[2:])
    assert_shares(a, b)
    t.share_memory_()
    b[0], view[0] = 10, 20
    assert a.tolist() == [10, 1, 20, 3, 4, 5]
    assert t.tolist() == [0, 1, 2, 3, 4, 5]
    assert_shares(a, b)
    assert_independent(b, nd.to_numpy(t))
    assert_shares(t, nd.to_numpy(t))


def test_what_is_made_of_the_array_again_stays_valid_too() -> None:
    t = nd.to_torch(np.arange(6.0))
    b = nd.to_numpy(t)
    u = nd.to_torch(b[1:])
    c = nd.to_numpy(u)
    t.share_memory_()
    u.share_memory_()
    del t, b
    gc.collect()
    assert_same(c, np.arange(1, 6.0))
    assert_same(u, torch.arange(1, 6, dtype=torch.float64))


# ---- nothing lives longer than it is needed ----


def held_array() -> tuple[Any, torch.Tensor]:
    a = np.arange(6.0)
    return weakref.ref(a), nd.to_torch(a)


def test_the_last_of_tensor_and_arrays_frees_the_array() -> None:
    gone, t = held_array()
    b, c = nd.to_numpy(t), nd.to_numpy(t[2:])
    del t, b
    assert gone() is not None
    del c
    assert gone() is None


def test_a_moved_tensor_lets_go_of_its_array() -> None:
    gone, t = held_array()
    t.share_memory_()
    assert gone() is None
    gone, t = held_array()
    b = nd.to_numpy(t)
    t.share_memory_()
    assert gone() is not None
    c = nd.to_numpy(t)
    del b
    assert gone() is None
    assert c.tolist() == t.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_array_does_not_hold_what_its_tensor_moved_to(interpreters: Interpreters) -> None:
    code = """
t = nd.to_torch(np.arange(6.0))
b = nd.to_numpy(t)
t.share_memory_()
where = t.data_ptr()
assert is_mapped(where)
del t
assert not is_mapped(where)
assert b.tolist() == [0, 1, 2, 3, 4, 5]
"""
    assert interpreters.run(MAPPED + code) == (0, "")


@pytest.mark.skipif(os.environ.get("NDTORCH_FAST") == "0", reason="blocks are malloc's then, which may keep them")
@pytest.mark.parametrize("moves", [False, True])
def test_a_block_of_our_own_is_freed_with_its_last_holder(moves: bool, interpreters: Interpreters) -> None:
    code = f"""
t = nd.to_torch(np.zeros({PAGES // 8}), copy=True)
b = nd.to_numpy(t)
where = b.__array_interface__["data"][0]
if {moves}:
    t.share_memory_()
part = b[5:]
del t, b
assert is_mapped(where)
del part
assert not is_mapped(where)
"""
    assert interpreters.run(MAPPED + code) == (0, "")


def test_conversions_leak_nothing(interpreters: Interpreters) -> None:
    """In a process of its own: what threads of other tests take and give back meanwhile would count as well."""
    code = """
import os, pathlib, sys
import numpy as np, torch, ndtorch as nd

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

array = np.zeros(1000)
tensors = [nd.to_torch(array), nd.to_torch(array, copy=True), torch.from_numpy(array), torch.zeros(1000)]
references = sys.getrefcount(array)

def work(times):
    for _ in range(times):
        for tensor in tensors:
            nd.to_numpy(tensor)
        nd.to_numpy(nd.to_torch(array))
        nd.to_numpy(nd.to_torch(array, copy=True))

work(1000)
before = resident()
work(TIMES)
assert sys.getrefcount(array) == references
assert resident() - before < 1 << 23  # one lost block in a hundred would be as much
"""
    assert interpreters.run(code.replace("TIMES", "100_000" if IS_FAST else "2_000")) == (0, "")


def test_memory_that_goes_back_and_forth_makes_no_chain(interpreters: Interpreters) -> None:
    code = """
import numpy as np, ndtorch as nd
a = np.arange(4.0)
for _ in range(TIMES):
    a = nd.to_numpy(nd.to_torch(a))
    a = nd.to_numpy(nd.to_torch(a[:]))
assert a.tolist() == [0, 1, 2, 3]
del a
print("ok")
"""
    assert interpreters.run(code.replace("TIMES", "100_000" if IS_FAST else "1_000")) == (0, "")
    assert interpreters.printed == "ok"


def test_the_protection_of_a_read_only_array_cannot_be_lifted() -> None:
    for t in (nd.to_torch(np.zeros(3)), nd.to_torch(np.zeros(3), copy=True)):
        b = nd.to_numpy(t.requires_grad_())
        with pytest.raises(ValueError, match="WRITEABLE"):
            b.flags.writeable = True


# ---- other processes and threads ----


def add_up(inbox: Any, outbox: Any) -> None:
    """What the spawned child does."""
    received = inbox.get()
    total = received.sum().item()
    received[0] = 100
    outbox.put(total)


@pytest.mark.slow
def test_a_queue_to_a_spawned_process_leaves_the_arrays_valid() -> None:
    context = torch.multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    a = np.ones(PAGES // 8)
    t = nd.to_torch(a)
    b = nd.to_numpy(t[1:])
    child = context.Process(target=add_up, args=(inbox, outbox))
    child.start()
    try:
        inbox.put(t)
        assert outbox.get(timeout=300) == a.size
    finally:
        child.join(300)
    assert child.exitcode == 0
    assert t[0] == 100
    assert b.min() == b.max() == a[0] == 1
    gone = weakref.ref(a)
    del a, t
    gc.collect()
    b[:] = 2
    assert b.sum() == 2 * b.size
    del b
    assert gone() is None


@pytest.mark.slow
def test_a_loader_with_spawned_workers_leaves_the_arrays_valid() -> None:
    x = nd.to_torch(np.arange(32.0).reshape(8, 4))
    y = nd.to_torch(np.arange(8), copy=True)
    arrays = nd.to_numpy([x, y])
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=4, num_workers=1, multiprocessing_context="spawn"
    )
    first, second = list(loader)
    assert_same(torch.cat([first[0], second[0]]), torch.arange(32, dtype=torch.float64).view(8, 4))
    assert_same(torch.cat([first[1], second[1]]), torch.arange(8))
    assert x.is_shared()
    assert y.is_shared()
    del x, y, loader
    gc.collect()
    assert_same(arrays, [np.arange(32.0).reshape(8, 4), np.arange(8)])


def test_threads_may_convert_move_and_drop() -> None:
    common = np.full(1000, 7.0)
    block = nd.to_torch(common, copy=True)
    references = sys.getrefcount(common)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for i in range(300):
                tensors = [nd.to_torch(common), nd.to_torch(np.full(1000, 7.0)), nd.to_torch(common, copy=True), block]
                arrays = nd.to_numpy(tensors)
                if i % 10 == 0:
                    tensors[i // 10 % 3].share_memory_()
                del tensors
                assert all(array.min() == array.max() == 7 for array in arrays)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    gc.collect()
    assert sys.getrefcount(common) == references


FORK = """
import os, numpy as np, torch, ndtorch as nd
a = np.full(1000, 7.0)
t, u = nd.to_torch(a), nd.to_torch(a, copy=True)
b, c = nd.to_numpy([t, u])
def check():
    d = nd.to_numpy(t[1:])
    t.share_memory_(), u.share_memory_()
    t.fill_(9), u.fill_(9)
    filler = [np.full(1000, 3.0) for _ in range(5)]
    assert all((x == 7).all() for x in (a, b, c, d))
    e = nd.to_numpy(nd.to_torch(np.full(1000, 7.0)))
    assert (e == 7).all()
pid = os.fork()
if pid == 0:
    check()
    del b, c
    raise SystemExit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
check()
kept = nd.to_numpy(nd.to_torch(np.zeros(4))), nd.to_numpy(nd.to_torch(np.zeros(4), copy=True))
torch.kept_by_a_module = kept[1]
print("ok")
"""


def test_a_fork_in_between_and_the_end_of_the_process_are_quiet() -> None:
    done = alone(FORK)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


# ---- what explain says ----


def warns(tensor: torch.Tensor) -> bool:
    return any("pytorch#51849" in note for note in nd.explain(tensor, to="numpy").notes)


def test_explain_warns_of_memory_that_torch_owns() -> None:
    assert warns(torch.zeros(3))
    assert warns(torch.zeros(3)[1:])
    assert warns(nd.to_torch(np.zeros(3)).clone())
    notes = nd.explain(torch.zeros(3, requires_grad=True), to="numpy").notes
    assert len(notes) == 2
    assert "pytorch#51849" in notes[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nd.to_torch(np.zeros(3))[1:],
        lambda: nd.to_torch(np.zeros(3)).requires_grad_(),
        lambda: nd.to_torch(np.zeros(3), copy=True),
        lambda: nd.stack([np.zeros(3), np.zeros(3)]),
        lambda: nd.image_to_torch(np.zeros((4, 4, 3), np.uint8)),
        lambda: nd.to_torch(np.zeros(3)).share_memory_(),
        lambda: torch.zeros(3).share_memory_(),
        lambda: torch.zeros(3, dtype=torch.complex64).conj(),
        lambda: torch.zeros(0),
        lambda: torch.zeros(3, device="meta"),
    ],
)
def test_explain_does_not_warn_where_the_array_stays_valid_or_is_a_copy(make: Callable[[], torch.Tensor]) -> None:
    assert not warns(make())
    assert not any("51849" in note for note in nd.explain(make()).notes)


@only_fast
def test_explain_knows_what_torch_made_of_an_array() -> None:
    assert not warns(torch.from_numpy(np.zeros(3)))
    assert not warns(torch.as_tensor(np.zeros(3)))
    assert warns(torch.from_dlpack(torch.zeros(3)))


@only_fast
def test_owners_that_do_not_prove_themselves_are_left_alone_and_that_is_said() -> None:
    code = """
import numpy as np, torch, importlib, sys, types
package = types.ModuleType("ndtorch")  # without the package's own imports
package.__path__ = PATH
sys.modules["ndtorch"] = package
from ndtorch import _native
_native.enable_owners = lambda: "no such field"
del sys.modules["ndtorch"]
import ndtorch as nd
from ndtorch import _bridge
assert _bridge.status().fast
assert "51849" in _bridge.status().notes[0] and "no such field" in _bridge.status().notes[0]
t = nd.to_torch(np.zeros(3))
assert isinstance(nd.to_numpy(t).base, torch.UntypedStorage)
assert "51849" in nd.explain(t, to="numpy").notes[0]
assert "51849" in str(nd.doctor())
print("ok")
"""
    assert printed(code.replace("PATH", repr(list(nd.__path__)))) == "ok"


def test_the_bridge_says_nothing_of_owners_where_they_work() -> None:
    assert not any("51849" in note for note in _bridge.status().notes)
