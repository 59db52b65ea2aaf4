"""A map-style Dataset in the place of arrays: what DataLoader makes of it, and faults that name the sample."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)
from upstream import printed

import ndtorch as nd
from ndtorch._turns import Turns


class Squares(Dataset):
    """Samples of several kinds of leaves."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        assert type(i) is int
        return {"x": np.full((2, 3), i, np.float32), "y": i * i, "name": f"sample {i}", "ratio": i / 2}


class ManySquares(Squares):
    """The same, made together."""

    def __init__(self, length: int = 10) -> None:
        super().__init__(length)
        self.asked: list[list[int]] = []

    def __getitem__(self, i: int) -> Any:
        raise AssertionError("one by one")

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        self.asked.append(numbers)
        return [super(ManySquares, self).__getitem__(i) for i in numbers]


class Failing(Squares):
    """A sample that cannot be made."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error = at, error

    def __getitem__(self, i: int) -> Any:
        if i == self.at:
            raise self.error
        return super().__getitem__(i)


class Given(Dataset):
    """Samples from a list."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        return self.samples[i]


class Duck:
    """No Dataset of torch, and no array either."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Any:
        return np.arange(3) + i


def as_data_loader(dataset: Any, batch_size: int, **options: Any) -> list[Any]:
    return list(DataLoader(dataset, batch_size, collate_fn=nd.collate, **options))


# ---- what is accepted ----


@pytest.mark.parametrize(
    "make",
    [
        Squares,
        ManySquares,
        Duck,
        lambda: Subset(Squares(), [7, 2, 2, 9, 0]),
        lambda: Subset(ManySquares(), [7, 2, 2, 9, 0]),
        lambda: Subset(Subset(Squares(), [7, 2, 2, 9, 0]), [1, 3]),
        lambda: random_split(Squares(), [7, 3], torch.Generator().manual_seed(0))[0],
        lambda: ConcatDataset([Squares(3), Squares(4)]),
        lambda: StackDataset(Squares(4), Squares(4)),
        lambda: StackDataset(a=Squares(4), b=ManySquares(4)),
        lambda: Squares() + Squares(2),
        lambda: TensorDataset(torch.arange(10), torch.rand(10, 3)),
        lambda: range(10),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("threads", [0, None, 3])
def test_batches_are_those_of_a_data_loader_with_the_same_collate(make, threads):
    torch.manual_seed(0)
    data = make()
    assert_same(list(nd.Loader(data, 4, threads=threads)), as_data_loader(data, 4))
    assert len(nd.Loader(data, 4)) == len(DataLoader(data, 4))


def test_samples_come_in_the_order_of_the_loader():
    rows = [i for batch in nd.Loader(np.arange(10), 4, shuffle=True, seed=5) for i in batch.tolist()]
    squares = [y for batch in nd.Loader(Squares(), 4, shuffle=True, seed=5) for y in batch["y"].tolist()]
    assert squares == [i * i for i in rows]
    assert rows != sorted(rows)


def test_a_loop_over_samples_goes_on_where_it_stood():
    loader = nd.Loader(Squares(), 3, shuffle=True, seed=1)
    rest = list(loader)[2:]
    loader = nd.Loader(Squares(), 3, shuffle=True, seed=1)
    batches = iter(loader)
    next(batches), next(batches)
    other = nd.Loader(Squares(), 3, shuffle=True, seed=1)
    other.load_state_dict(loader.state_dict())
    assert_same(list(other), rest)


@pytest.mark.parametrize("length", [0, 1])
def test_a_dataset_may_have_no_samples_or_one(length):
    assert len(list(nd.Loader(Squares(length), 4))) == length


def test_samples_are_asked_for_together_where_the_dataset_can():
    data = ManySquares()
    list(nd.Loader(data, 4, threads=0))
    assert data.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert {type(number) for numbers in data.asked for number in numbers} == {int}
    part = ManySquares()
    list(nd.Loader(Subset(part, [7, 2, 5]), 2, threads=0))
    assert part.asked == [[7, 2], [5]]


@dataclass
class Sample:
    image: Any
    label: int


def test_samples_may_be_of_any_structure_that_collate_takes():
    data = Given([Sample(torch.full((2,), i), i) for i in range(4)])
    (batch,) = nd.Loader(data, 4)
    assert isinstance(batch, Sample)
    assert_same(batch.image, torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3]]))
    assert_same(batch.label, torch.arange(4))


def test_a_dataset_may_be_one_column_of_several():
    batches = list(nd.Loader({"sample": Duck(), "weight": np.arange(5.0)}, 2))
    expected = {"sample": torch.tensor([[2, 3, 4], [3, 4, 5]]), "weight": torch.tensor([2.0, 3.0], dtype=torch.float64)}
    assert_same(batches[1], expected)
    with pytest.raises(nd.ShapeMismatchError, match=r"has 4 rows and .* has 5"):
        nd.Loader((Duck(), np.arange(4)))


def test_a_collate_function_makes_the_batches():
    (batch,) = nd.Loader(Squares(3), 3, collate_fn=default_collate)
    assert_same(batch, default_collate([Squares()[i] for i in range(3)]))
    (batch,) = nd.Loader(Squares(3), 3, collate_fn=lambda samples: [sample["name"] for sample in samples])
    assert batch == ["sample 0", "sample 1", "sample 2"]


class Whole(Squares):
    """Makes batches, not samples."""

    def __getitems__(self, numbers: list[int]) -> Any:
        return {"y": torch.tensor(numbers) ** 2}


def test_a_dataset_that_makes_whole_batches_needs_a_collate_function_that_takes_them():
    (batch,) = nd.Loader(Whole(3), 3, collate_fn=lambda batch: batch)
    assert_same(batch, {"y": torch.tensor([0, 1, 4])})
    with pytest.raises(nd.UnsupportedTypeError, match=r"__getitems__ of Whole gave a dict.*collate_fn=lambda"):
        list(nd.Loader(Whole(3), 3))


# ---- casts and pictures ----


def test_floats_of_a_batch_are_cast_and_all_else_stays():
    (batch,) = nd.Loader(Squares(2), 2, float_dtype="float64")
    assert (batch["x"].dtype, batch["ratio"].dtype, batch["y"].dtype) == (torch.float64, torch.float64, torch.int64)
    assert batch["name"] == ["sample 0", "sample 1"]
    (batch,) = nd.Loader(Squares(2), 2, float_dtype="float32")
    assert_same(batch["ratio"], torch.tensor([0.0, 0.5]))


def test_pictures_of_a_batch_become_planes():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    data = Given([(pixels[i], pixels[i, :, :, 0], i) for i in range(4)])
    image = {"mean": (0.5, 0.4, 0.3), "std": 0.25}
    with pytest.raises(nd.ShapeMismatchError, match=r"^Loader: ") as refused:  # the grey ones have one channel
        list(nd.Loader(data, 4, image=image))
    assert refused.value.path == "[1]"
    ((colours, greys, labels),) = nd.Loader(data, 4, image={"scale": 0.5})
    assert_same(colours, nd.image_to_torch(pixels, scale=0.5))
    assert_same(greys, nd.image_to_torch(pixels[..., :1], scale=0.5))
    assert_same(labels, torch.arange(4))
    ((colours, _, _),) = nd.Loader(data, 4, image=True)
    assert_same(colours, nd.image_to_torch(pixels))


def test_pictures_of_a_batch_are_named_by_leaf():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    data = Given(
        [{"photo": pixels[i], "depth": pixels[i, :, :, 0], "bright": pixels[i] / 255, "y": i} for i in range(4)]
    )
    (batch,) = nd.Loader(data, 4, image={"photo": {"mean": 0.5}, "bright": True})
    assert_same(batch["photo"], nd.image_to_torch(pixels, mean=0.5))
    assert_same(batch["bright"], nd.image_to_torch(pixels / 255))
    assert_same(batch["depth"], torch.from_numpy(pixels[..., 0]))
    with pytest.raises(
        nd.InvalidOptionError, match=r"image= names 'foto', which a batch has not; expected one of .*photo"
    ):
        list(nd.Loader(data, 4, image={"foto": True}))


def test_a_picture_is_named_in_a_dataset_that_is_one_column_of_several():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    data = (Given([{"photo": each} for each in pixels]), pixels)
    ((samples, others),) = nd.Loader(data, 4, image={"[0]['photo']": {"std": 0.5}})
    assert_same(samples["photo"], nd.image_to_torch(pixels, std=0.5))
    assert_same(others, torch.from_numpy(pixels))
    with pytest.raises(nd.InvalidOptionError, match=r"names \"\[0\]\['foto'\]\", which a batch has not"):
        list(nd.Loader(data, 4, image={"[0]['foto']": True}))
    with pytest.raises(nd.InvalidOptionError, match=r"names 'foto', which the data has not"):
        nd.Loader(data, 4, image={"foto": True})


def test_pillow_pictures_are_samples(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    data = Given([(image.fromarray(each), i) for i, each in enumerate(pixels)])
    ((planes, _),) = nd.Loader(data, 3, image=True)
    assert_same(planes, nd.image_to_torch(pixels))


def test_pictures_that_are_not_there_are_missed_by_name():
    with pytest.raises(nd.InvalidOptionError, match=r"finds no pictures.*, \['x'\] f32\[2,2,3\]\(torch\), \['y'\]"):
        list(nd.Loader(Squares(2), 2, image=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": {"sclae": 1}}, "image= has no option 'sclae'; expected some of dtype, scale, mean, std"),
        ({"float_dtype": "int8"}, "^Loader: float_dtype=int8 is not a floating dtype"),
        ({"collate_fn": 3}, "collate_fn=3 cannot be called"),
        ({"pad_value": 0}, "pad_value= has no meaning for the samples of a Dataset.*Hint: collate_fn=lambda"),
    ],
)
def test_options_without_a_meaning_are_refused_when_the_loader_is_made(options, message):
    with pytest.raises(nd.InvalidOptionError, match=message):
        nd.Loader(Squares(), 2, **options)


# ---- what is refused ----


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize("make", [Stream, lambda: iter([1, 2]), lambda: (i for i in range(3))])
def test_a_stream_is_refused_with_the_call_that_takes_it(make):
    with pytest.raises(nd.UnsupportedTypeError, match=r"order of its own.*Hint: .*DataLoader\(data, batch_size, coll"):
        nd.Loader(make())


def test_a_data_loader_is_refused_with_the_loader_that_takes_its_place():
    data = DataLoader(Squares(), 4)
    with pytest.raises(nd.UnsupportedTypeError, match=r"a DataLoader gives.*Hint: ndtorch.Loader\(data.dataset"):
        nd.Loader(data)


class Endless(Dataset):
    def __getitem__(self, i: int) -> int:
        return i


class Shy(Endless):
    def __len__(self) -> int:
        raise NotImplementedError("not known yet")


@pytest.mark.parametrize("make", [Endless, Shy])
def test_a_dataset_without_a_length_is_refused(make):
    with pytest.raises(nd.UnsupportedTypeError, match="does not say how many samples it has"):
        nd.Loader(make())


@pytest.mark.parametrize("text", ["text", b"bytes", bytearray(b"1234"), {"a": 1}.keys()])
def test_text_and_buffers_are_no_datasets(text):
    try:
        batches = list(nd.Loader(text, 2))
    except nd.NdtorchError as error:
        assert error.subject  # noqa: PT017
    else:
        assert batches[0].dtype is torch.uint8


# ---- faults ----


@pytest.mark.parametrize("threads", [0, None, 2])
@pytest.mark.parametrize("error", [ValueError("no such file"), KeyError("label"), MemoryError()])
def test_an_exception_in_a_sample_arrives_with_its_type_and_the_number_of_the_sample(error, threads):
    batches = iter(nd.Loader(Failing(7, error), 2, threads=threads))
    assert [next(batches)["y"].tolist() for _ in range(3)] == [[0, 1], [4, 9], [16, 25]]
    with pytest.raises(type(error)) as raised:
        next(batches)
    assert "at sample 7 of Failing" in notes_of(raised.value)


def notes_of(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def test_the_number_of_a_sample_counts_in_the_data_that_was_given():
    part = Subset(Failing(7, ValueError("broken")), [1, 7, 3])
    with pytest.raises(ValueError, match="broken") as raised:
        list(nd.Loader(part, 3))
    assert notes_of(raised.value)[0] == "at sample 1 of Subset"


def test_an_exception_that_is_raised_again_is_noted_once():
    data = Failing(7, ValueError("the same object"))
    for _ in range(3):
        with pytest.raises(ValueError, match="the same object") as raised:
            list(nd.Loader(data, 2, threads=0))
    assert notes_of(raised.value).count("at sample 7 of Failing") == 1


def test_an_exception_in_samples_that_are_made_together_names_the_batch():
    class Broken(ManySquares):
        def __getitems__(self, numbers: list[int]) -> list[Any]:
            raise OSError("no file")

    with pytest.raises(OSError, match="no file") as raised:
        list(nd.Loader(Broken(20), 12))
    assert notes_of(raised.value)[0] == "at one of the samples 0, 1, 2, 3, 4, 5, 6, 7 and 4 more of Broken"


def test_an_exception_in_a_collate_function_names_the_batch():
    with pytest.raises(ZeroDivisionError) as raised:
        list(nd.Loader(Squares(), 3, collate_fn=lambda samples: 1 / 0))
    assert notes_of(raised.value)[0] == "in the batch of samples 0, 1, 2"


class Liar(Squares):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return [0] * 10 and [*range(10)][i]


def test_a_dataset_with_fewer_samples_than_it_says_fails_at_the_first_that_is_missing():
    with pytest.raises(IndexError) as raised:
        list(nd.Loader(Liar(), 4))
    assert notes_of(raised.value)[0] == "at sample 10 of Liar"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (np.zeros(3), "sample 2 has an array of another shape than sample"),
        ("text", "sample 2 has another kind of leaf than sample"),
        ({"x": 1}, "another structure than sample"),
    ],
)
def test_samples_that_do_not_fit_are_named_by_their_numbers(odd, message, order):
    data = Given([np.zeros(2), np.zeros(2), odd, np.zeros(2)])
    with pytest.raises(nd.ShapeMismatchError, match=f"^Loader: .*{message}") as raised:
        list(nd.Loader(data, 4, sampler=order) if order[0] == 0 else nd.Loader(Subset(data, range(4)), 4))
    assert raised.value.index == 2


def test_the_numbers_in_a_message_are_those_of_the_data_and_not_of_the_batch():
    data = Given([{"x": np.zeros(2)}] * 5 + [{"x": np.zeros(3)}])
    with pytest.raises(nd.ShapeMismatchError, match=r"sample 5 has an array of another shape than sample 4") as raised:
        list(nd.Loader(data, 2))
    assert (raised.value.index, raised.value.path) == (5, "['x']")


def test_a_sample_that_is_none_is_named():
    data = Given([np.zeros(2), np.zeros(2), None])
    with pytest.raises(nd.UnsupportedTypeError, match=r"sample 2 of Given is None.*collate_fn="):
        list(nd.Loader(data, 2))
    first, second = nd.Loader(data, 2, collate_fn=lambda samples: [each for each in samples if each is not None])
    assert (len(first), len(second)) == (2, 0)


def test_a_dataset_that_gives_more_or_fewer_samples_than_it_was_asked_for_is_refused():
    class Short(Squares):
        def __getitems__(self, numbers: list[int]) -> list[Any]:
            return [self[i] for i in numbers[1:]]

    with pytest.raises(nd.ShapeMismatchError, match="was asked for 4 samples and gave 3"):
        list(nd.Loader(Short(), 4))


# ---- threads and processes ----


class Watched(Squares):
    """Counts how many threads are in it at a time."""

    def __init__(self) -> None:
        super().__init__(64)
        self.inside, self.most, self.lock = 0, 0, threading.Lock()

    def __getitem__(self, i: int) -> Any:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.0005)
        with self.lock:
            self.inside -= 1
        return i


@pytest.mark.parametrize("threads", [0, 1, None])
def test_a_dataset_is_asked_by_one_thread_at_a_time(threads):
    data = Watched()
    list(nd.Loader(data, 4, threads=threads))
    assert data.most == 1


def test_a_dataset_is_asked_by_many_threads_where_the_caller_says_so():
    reached = {0: threading.Event(), 8: threading.Event()}

    class Meeting(Squares):
        """Two samples of two batches that wait for each other."""

        def __getitem__(self, i: int) -> Any:
            if i in reached:
                reached[i].set()
                assert all(each.wait(120) for each in reached.values())
            return i

    assert_same(list(nd.Loader(Meeting(16), 8, threads=2)), [torch.arange(8), torch.arange(8, 16)])


_FORKED = """
import os, warnings
from ndtorch._turns import Turns
warnings.simplefilter("ignore")  # of forking a process that has threads: that is the point here
turns = Turns()
with turns.taken():
    child = os.fork()
    if not child:
        with turns.taken():
            os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_does_not_wait_for_the_turn_of_a_thread_it_has_not():
    assert printed(_FORKED) == "0"


def test_turns_are_not_part_of_what_is_pickled():
    turns = Turns()
    with turns.taken():
        other = pickle.loads(pickle.dumps(turns))
        with other.taken():
            pass


def test_a_loader_may_be_the_dataset_of_a_data_loader_and_the_other_way_round():
    class Epochs(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> Any:
            return torch.cat([batch["y"] for batch in nd.Loader(Squares(), 4, seed=i, shuffle=True)]).sum()

    assert_same(list(nd.Loader(Epochs(), 2)), as_data_loader(Epochs(), 2))


# ---- progress bars ----


def test_a_bar_of_tqdm_knows_how_many_batches_there_are():
    tqdm = pytest.importorskip("tqdm", reason="needs tqdm").tqdm
    loader = nd.Loader(np.arange(10), 3)
    with open(os.devnull, "w") as nowhere, tqdm(loader, file=nowhere) as bar:
        assert (bar.total, len(loader)) == (4, 4)
        assert len(list(bar)) == 4


def test_a_bar_of_tqdm_shows_where_a_loop_goes_on():
    tqdm = pytest.importorskip("tqdm", reason="needs tqdm").tqdm
    loader = nd.Loader(np.arange(10), 3)
    batches = iter(loader)
    next(batches)
    other = nd.Loader(np.arange(10), 3)
    other.load_state_dict(loader.state_dict())
    batches = iter(other)
    with open(os.devnull, "w") as nowhere:
        bar = tqdm(batches, total=len(other), initial=len(other) - len(batches), file=nowhere)
        assert (bar.n, bar.total) == (1, 4)
        assert len(list(bar)) == 3
        assert bar.n == 4
