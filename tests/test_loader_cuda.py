"""Batches on a CUDA device: the same numbers as on the CPU, whatever streams, threads and devices there are."""

from __future__ import annotations

import gc
import multiprocessing

import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd
from ndtorch._dtypes import BY_NAME

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DATA = {"x": np.random.default_rng(0).random((3000, 64)), "y": np.arange(3000)}


def on_cpu(batches):
    return [{name: tensor.cpu() for name, tensor in batch.items()} for batch in batches]


def expected(batch_size=32, **options):
    return list(nd.Loader(DATA, batch_size, shuffle=True, threads=0, **options))


def busy(seconds: float) -> None:
    """Give the current stream something to do, so that whatever does not wait for it is early."""
    torch.cuda._sleep(int(seconds * 1e9))


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 0)])
def test_batches_are_those_of_the_cpu(device, threads):
    batches = list(nd.Loader(DATA, 32, shuffle=True, device=device, threads=threads))
    assert {tensor.device for batch in batches for tensor in batch.values()} == {torch.device("cuda", 0)}
    assert_same(on_cpu(batches), expected())


def test_batches_are_safe_on_the_stream_that_is_current_when_they_are_handed_out():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sums = [batch["x"].sum() for batch in nd.Loader(DATA, 32, shuffle=True, device="cuda")]
    stream.synchronize()
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack([batch["x"].sum() for batch in expected()]))


def test_memory_of_a_batch_that_is_still_computed_with_is_not_written():
    """A batch is dropped before the stream that uses it comes to it, and the copies of later ones go on meanwhile."""
    sums = []
    for batch in nd.Loader(DATA, 32, shuffle=True, device="cuda"):
        busy(0.002)
        sums.append(batch["x"].sum())
        del batch
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack([batch["x"].sum() for batch in expected()]))


def test_a_slow_device_never_reads_staging_memory_of_a_later_batch():
    """Copies are kept from being made by work in front of them on their stream."""
    loader = nd.Loader(DATA, 32, shuffle=True, device="cuda", threads=4)
    loader._placement._ring._budget = 0
    with torch.cuda.stream(loader._placement._lane._stream):
        busy(0.05)
    assert_same(on_cpu(loader), expected())


def test_copies_overlap_what_the_current_stream_does():
    """A batch is whole on its own stream while the current one has not come to the wait for it."""
    loader = nd.Loader(DATA, 32, device="cuda", threads=0)
    busy(0.2)
    computing = torch.cuda.Event()
    computing.record()
    next(iter(loader))
    loader._placement._lane._stream.synchronize()
    assert not computing.query()


def test_staging_memory_is_pinned_and_bounded_and_goes_with_the_loader():
    loader = nd.Loader(DATA, 32, shuffle=True, device="cuda")
    tensor, _ = loader._placement.allocate((4, 4), BY_NAME["float32"])
    assert tensor.is_pinned()
    del tensor
    for _ in range(3):
        list(loader)
    ring = loader._placement._ring
    assert 0 < ring.nbytes <= ring._budget
    before = torch.cuda.host_memory_stats()["active_bytes.current"]
    nbytes = ring.nbytes
    del loader, ring
    gc.collect()
    torch.cuda.synchronize()
    torch.empty(1, pin_memory=True)  # the allocator looks at what has come back
    assert torch.cuda.host_memory_stats()["active_bytes.current"] <= before - nbytes


def test_device_memory_does_not_grow_with_epochs():
    loader = nd.Loader(DATA, 32, shuffle=True, device="cuda")
    for _ in range(3):
        list(loader)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(20):
        list(loader)
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() <= 2 * before


def test_pictures_keep_their_memory_format():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).movedim(-1, 1)
    (batch,) = nd.Loader(pixels, 64, device="cuda")
    assert_same(batch.cpu(), torch.from_numpy(pixels))
    placement = nd.Loader(pixels, 64, device="cuda")._placement
    (leaf,) = placement.receive(placement.send([tensor]))
    assert leaf.is_contiguous(memory_format=torch.channels_last)
    assert_same(leaf.cpu().contiguous(), tensor.contiguous())


def test_samples_of_a_dataset_come_to_the_device_and_text_stays():
    samples = [{"x": np.full(3, i), "name": f"sample {i}"} for i in range(10)]

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return len(samples)

        def __getitem__(self, i):
            return samples[i]

    first, *_ = nd.Loader(Samples(), 4, device="cuda")
    assert first["x"].device.type == "cuda"
    assert first["name"] == ["sample 0", "sample 1", "sample 2", "sample 3"]


def test_many_loaders_at_a_time_do_not_mix_their_batches():
    loaders = [nd.Loader(DATA, 32, shuffle=True, seed=seed, device="cuda", threads=2) for seed in range(6)]
    steps = zip(*loaders, strict=True)
    got = [[batch["y"].cpu() for batch in step] for step in steps]
    want = zip(*(nd.Loader(DATA, 32, shuffle=True, seed=seed, threads=0) for seed in range(6)), strict=True)
    assert_same(got, [[batch["y"] for batch in step] for step in want])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one_gets_its_batches():
    with torch.cuda.device(0):
        batches = list(nd.Loader(DATA, 32, shuffle=True, device="cuda:1"))
    assert {batch["x"].device.index for batch in batches} == {1}
    assert_same(on_cpu(batches), expected())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_without_a_number_is_the_one_that_was_current_when_the_loader_was_made():
    with torch.cuda.device(1):
        loader = nd.Loader(DATA, 32, device="cuda", threads=2)
    assert next(iter(loader))["x"].device.index == 1


def test_a_loop_that_is_left_early_leaves_a_loader_that_works():
    loader = nd.Loader(DATA, 32, shuffle=True, device="cuda")
    for _ in range(20):
        next(iter(loader))
    loader.set_epoch(0)
    assert_same(on_cpu(loader), expected())


def test_a_device_without_memory_raises_and_the_loader_works_afterwards():
    loader = nd.Loader(np.zeros((4096, 1 << 16), np.uint8), 2048, device="cuda", threads=2)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 26)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            list(loader)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    loader.set_epoch(0)
    assert [batch.shape[0] for batch in loader] == [2048, 2048]


def test_a_number_of_a_device_that_is_not_there_is_refused():
    with pytest.raises(nd.InvalidOptionError, match="Loader: device='cuda:99' cannot be used here"):
        nd.Loader(DATA, 32, device="cuda:99")


def put_what_is_raised(loader, queue):
    try:
        list(loader)
    except RuntimeError as error:
        queue.put(str(error))
    else:
        queue.put("nothing")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_by_torch_that_it_has_no_cuda():
    loader = nd.Loader(DATA, 32, device="cuda")
    list(loader)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=put_what_is_raised, args=(loader, queue))
    child.start()
    assert "forked subprocess" in queue.get(timeout=60)
    child.join(60)


def samples_in(loader):
    return sum(batch["y"].numel() for batch in loader)


def test_a_spawned_child_loops_over_the_loader_it_was_given():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(samples_in, (nd.Loader(DATA, 32, device="cuda"),)).get(120) == 3000
