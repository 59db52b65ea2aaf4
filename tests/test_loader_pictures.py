"""Pictures become planes while they are gathered, bit for bit as `image_to_torch` makes them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same
from torch.utils.data import Dataset, TensorDataset

import ndtorch as nd

RNG = np.random.default_rng(7)
COLOUR = RNG.integers(0, 256, (7, 5, 6, 3), np.uint8)


LABELS = np.arange(7)


class Photos(Dataset):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]


def batches(data: Any, batch_size: int = 3, **options: Any) -> list[Any]:
    return list(nd.Loader(data, batch_size, threads=0, shuffle=True, **options))


def orders(n: int, batch_size: int = 3) -> list[np.ndarray]:
    return [batch.numpy() for batch in nd.Loader(torch.arange(n), batch_size, threads=0, shuffle=True)]


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "normalised": {"mean": (0.4, 0.5, 0.6), "std": 0.25},
    "bfloat16 pixels": {"dtype": "bfloat16", "memory_format": torch.channels_last},
    "float16": {"dtype": torch.float16, "scale": 2.0, "std": (1.0, 2.0, 3.0)},
    "moved": {"dtype": "uint8", "scale": False},
    "moved as pixels": {"dtype": "uint8", "scale": False, "memory_format": torch.channels_last},
}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "row-major": lambda a: a,
    "reversed": lambda a: np.array(a[::-1, ::-1])[::-1, ::-1],
    "planes in memory": lambda a: np.ascontiguousarray(np.moveaxis(a, -1, 1)).transpose(0, 2, 3, 1),
    "every other column": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    "read-only": lambda a: np.lib.stride_tricks.as_strided(a, writeable=False),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_are_pictures_become_planes(layout: str, options: str) -> None:
    words = OPTIONS[options]
    source = LAYOUTS[layout](COLOUR)
    for batch, rows in zip(batches((source, np.arange(7)), image=words or True), orders(7), strict=True):
        assert_same(batch[0], nd.image_to_torch(COLOUR[rows], **words), strides=True)
        assert_same(batch[1], torch.from_numpy(rows))


@pytest.mark.parametrize("options", OPTIONS)
def test_lists_of_pictures_become_planes(options: str) -> None:
    words = OPTIONS[options]
    source = [LAYOUTS[layout](COLOUR)[i] for i, layout in enumerate([*LAYOUTS, "reversed", "row-major"])]
    for batch, rows in zip(batches(source, image=words or True), orders(7), strict=True):
        assert_same(batch, nd.image_to_torch(COLOUR[rows], **words), strides=True)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 4), (5, 3)])
def test_grey_and_deep_pictures_are_recognised(shape: tuple[int, ...], dtype: str) -> None:
    source = RNG.integers(0, 256**2 - 1, (4, *shape)).astype(dtype)
    for batch, rows in zip(batches({"x": source}, image=True), orders(4), strict=True):
        assert_same(batch["x"], torch.stack([nd.image_to_torch(source[row]) for row in rows]))


def test_pictures_of_a_memory_map_a_tensor_a_dataset_and_records(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLOUR)
    records = np.zeros(7, [("label", "i2"), ("image", "u1", COLOUR.shape[1:])])
    records["image"] = COLOUR
    tensor = torch.from_numpy(COLOUR)
    expected = [nd.image_to_torch(COLOUR[rows]) for rows in orders(7)]
    assert_same(batches(np.load(tmp_path / "a.npy", mmap_mode="r"), image=True), expected)
    assert_same([batch["image"] for batch in batches(records, image=True)], expected)
    assert_same(batches(tensor.permute(0, 2, 1, 3).transpose(1, 2), image=True), expected)
    assert_same([x for x, _ in batches(TensorDataset(tensor, torch.arange(7)), image=True)], expected)
    assert_same([batch["x"] for batch in batches([{"x": each, "y": 1} for each in COLOUR], image=True)], expected)


def test_text_and_other_numbers_are_no_pictures() -> None:
    data = {"x": COLOUR, "text": np.full((7, 5), b"abc"), "labels": np.arange(7, dtype=np.uint8), "f": COLOUR / 255}
    batch = batches(data, 7, image=True)[0]
    assert [batch[name].dtype for name in data] == [torch.float32, torch.uint8, torch.uint8, torch.float64]
    assert [batch[name].shape[1:] for name in data] == [(3, 5, 6), (5, 3), (), (5, 6, 3)]


def test_pixels_stay_as_they_are_where_nothing_is_said() -> None:
    for image in (None, False):
        assert_same(batches(COLOUR, image=image), [torch.from_numpy(COLOUR[rows]) for rows in orders(7)])


def test_float_dtype_leaves_planes_to_the_options_of_pictures() -> None:
    batch = batches((COLOUR, np.ones(7)), 7, image=True, float_dtype="float16")[0]
    assert [leaf.dtype for leaf in batch] == [torch.float32, torch.float16]


# ---- which leaves ----


def test_image_by_leaf_names_pictures_and_floating_ones_too() -> None:
    floats = RNG.random((7, 5, 6, 4))
    data = {"photo": COLOUR, "depth": (floats, COLOUR)}
    named = {"photo": {"mean": 0.5}, "['depth'][0]": True}
    for batch, rows in zip(batches(data, image=named), orders(7), strict=True):
        assert_same(batch["photo"], nd.image_to_torch(COLOUR[rows], mean=0.5))
        assert_same(batch["depth"][0], nd.image_to_torch(floats[rows]))
        assert_same(batch["depth"][1], torch.from_numpy(COLOUR[rows]))
    batch = batches((COLOUR, COLOUR), 7, image={1: True, 0: None})[0]
    assert [leaf.dtype for leaf in batch] == [torch.uint8, torch.float32]


REFUSED: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no pictures": (
        {"x": np.ones((3, 4, 5)), "y": [1, 2, 3]},
        True,
        nd.InvalidOptionError,
        r"no pictures.*data\['x'\] f64\[3,4,5\]\(numpy\), data\['y'\] i64\[3\].*image=\{'x': True\}",
    ),
    "no option": (COLOUR, {"meen": 1}, nd.InvalidOptionError, "no option 'meen'.*some of dtype, scale, mean, std"),
    "one option more": (COLOUR, {"mean": 1, "stdd": 2}, nd.InvalidOptionError, "no option 'stdd'.*some of dtype"),
    "no leaf": ({"x": COLOUR}, {"z": True}, nd.InvalidOptionError, r"names 'z'.*one of \['x'\]"),
    "no words": (COLOUR, 3, nd.InvalidOptionError, "image=3 has no meaning"),
    "planes": ({"x": COLOUR.transpose(0, 3, 1, 2)}, {"x": True}, nd.ShapeMismatchError, "look like planes"),
    "labels": ((COLOUR, np.arange(7)), {1: True}, nd.ShapeMismatchError, r"i64\[\]\(numpy\) is no picture"),
    "int32": ({"x": COLOUR.astype("i4")}, {"x": True}, nd.UnsupportedDtypeError, r"cannot take i32\[5,6,3\]"),
    "films": ({"x": COLOUR[:, None]}, {"x": True}, nd.ShapeMismatchError, "a row of it is a batch"),
    "mean": (COLOUR, {"mean": (1, 2)}, nd.ShapeMismatchError, "mean= has another length"),
    "std": ({"x": COLOUR}, {"std": 0}, nd.InvalidOptionError, "std=0.0 cannot be divided by"),
    "scale": (COLOUR, {"scale": -1}, nd.InvalidOptionError, "scale=-1 has no meaning"),
    "dtype": (COLOUR, {"dtype": "int32"}, nd.UnsupportedDtypeError, "dtype=int32 cannot hold"),
    "memory_format": (COLOUR, {"memory_format": 3}, nd.InvalidOptionError, "memory_format=3 has no meaning"),
    "channels": (
        [COLOUR[0], COLOUR[0, ..., 0]],
        True,
        nd.ShapeMismatchError,
        "picture 1 has another number of channels",
    ),
    "depths": ([COLOUR[0], COLOUR[0].astype("u2")], True, nd.UnsupportedDtypeError, "white is another number"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_option_that_makes_no_picture_is_refused(kind: str) -> None:
    data, image, error, message = REFUSED[kind]
    with pytest.raises(error, match=rf"^Loader: .*{message}"):
        nd.Loader(data, image=image)


def test_refusal_names_the_leaf() -> None:
    with pytest.raises(nd.ShapeMismatchError) as caught:
        nd.Loader({"a": (COLOUR,), "b": COLOUR}, image={"mean": (1.0, 2.0)})
    assert caught.value.path == "['a'][0]"


# ---- sizes ----


def test_pictures_of_several_sizes_are_a_list_of_planes() -> None:
    source = [COLOUR[i, : i + 1] for i in range(5)]
    for batch, rows in zip(batches(source, image={"std": 0.5}), orders(5), strict=True):
        assert type(batch) is list
        assert_same(batch, [nd.image_to_torch(source[row], std=0.5) for row in rows])


# ---- Pillow ----


def pillow(mode: str, count: int = 5) -> list[Any]:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return [image.fromarray(each).convert(mode) for each in COLOUR[:count]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "F"])
def test_pictures_of_pillow_are_decoded_when_a_batch_wants_them(mode: str) -> None:
    source = pillow(mode)
    for batch, rows in zip(batches({"x": source}, image=True), orders(5), strict=True):
        assert_same(batch["x"], nd.image_to_torch([source[row] for row in rows]))
    for batch, rows in zip(batches(source), orders(5), strict=True):
        assert_same(batch, torch.stack([nd.to_torch(source[row]) for row in rows]))


def test_pictures_of_pillow_of_several_sizes_are_a_list() -> None:
    source = [each.resize((3 + i, 4)) for i, each in enumerate(pillow("RGB"))]
    for batch, rows in zip(batches(source, image=True), orders(5), strict=True):
        assert_same(batch, [nd.image_to_torch(source[row]) for row in rows])
    for batch, rows in zip(batches(source), orders(5), strict=True):
        assert_same(batch, [nd.to_torch(source[row]) for row in rows])


def test_mode_that_means_something_else_is_refused() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match=r"mode 'P'.*image.convert\(\"RGB\"\)") as caught:
        nd.Loader({"x": [*pillow("RGB", 2), *pillow("P", 1)]}, image=True)
    assert caught.value.path == "['x'][2]"


@pytest.mark.parametrize("image", [None, True])
def test_broken_picture_says_which_row_it_is(image: Any) -> None:
    whole = io.BytesIO()
    good = pillow("RGB")
    good[0].save(whole, "PNG")
    opened = pytest.importorskip("PIL.Image", reason="Pillow is not installed").open
    source = [*good, opened(io.BytesIO(whole.getvalue()[:-40]))]
    loop = iter(nd.Loader({"x": source}, 2, threads=0, image=image))
    next(loop)
    next(loop)
    with pytest.raises(OSError, match="truncated") as caught:
        next(loop)
    assert "at row 5 of data['x']" in caught.value.__notes__


# ---- what is no picture by the look of it ----

PLANES = np.ascontiguousarray(np.moveaxis(COLOUR, -1, 1))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("place", ["", "[0]", "['x']"])
def test_hint_at_planes_is_the_call_that_makes_pixels_of_them(kind: Callable[..., Any], place: str) -> None:
    data: Any = {"": kind(PLANES), "[0]": (kind(PLANES), LABELS), "['x']": {"x": kind(PLANES), "y": LABELS}}[place]
    with pytest.raises(nd.InvalidOptionError, match=r"image= has no pictures.*looks like planes") as caught:
        nd.Loader(data, 7, image=True)
    call = caught.value.hint.split("looks like planes: ")[1].split(", a transpose")[0]
    (batch,) = nd.Loader(eval(call, {"data": data, "numpy": np}), 7, image=True)
    assert_same(batch, nd.image_to_torch(COLOUR))


@pytest.mark.parametrize("kind", [list, lambda planes: list(torch.from_numpy(planes)), lambda planes: Photos(planes)])
def test_hint_at_planes_one_by_one_is_the_call_for_each(kind: Callable[..., Any]) -> None:
    with pytest.raises(nd.InvalidOptionError, match=r"image= .*looks like planes: .*of each|in each sample") as caught:
        list(nd.Loader(kind(PLANES), 7, image=True))
    call = caught.value.hint.split("looks like planes: ")[1].rsplit(", a transpose")[0].rpartition(")")[0] + ")"
    images = kind(PLANES)
    pixels = [eval(call, {"image": images[i], "numpy": np}) for i in range(len(images))]
    (batch,) = nd.Loader(pixels, 7, image=True)
    assert_same(batch, nd.image_to_torch(COLOUR))


def test_planes_of_floats_are_planes_already() -> None:
    planes = PLANES.astype("float32")
    with pytest.raises(nd.InvalidOptionError, match=r"data\['x'\] looks like planes already: leave image= away"):
        nd.Loader({"x": planes, "y": LABELS}, 7, image=True)


def test_hint_at_floats_names_the_leaf_that_has_the_shape_of_pictures() -> None:
    data = (LABELS, COLOUR / 255)
    with pytest.raises(nd.InvalidOptionError, match=r"Hint: image=\{1: True\} takes that leaf for pictures"):
        nd.Loader(data, 7, image=True)
    (batch,) = nd.Loader(data, 7, image={1: True})
    assert_same(batch[1], nd.image_to_torch(COLOUR / 255))


def test_what_has_no_shape_of_pictures_gets_no_hint() -> None:
    with pytest.raises(nd.InvalidOptionError, match="image= has no pictures") as caught:
        nd.Loader((LABELS, COLOUR[None].repeat(7, 0)), 7, image=True)
    assert caught.value.hint is None
