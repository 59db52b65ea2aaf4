"""Pictures: `image_to_torch` is torch's own chain of steps to the last bit, and `image_to_numpy` the way back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, tensor_holding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SHAREABLE, UNSHAREABLE, any_values, can_be, read_only

import ndtorch as nd

SHAPE, OPTION = nd.ShapeMismatchError, nd.InvalidOptionError
DTYPE, TYPE = nd.UnsupportedDtypeError, nd.UnsupportedTypeError
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PIXELS = ("uint8", "uint16", "float16", "float32", "float64")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **SHAREABLE,
    **UNSHAREABLE,
    "planes": lambda a: np.moveaxis(np.array(np.moveaxis(a, -1, 0)), 0, -1),
    "reversed channels and columns": lambda a: a[..., ::-1, ::-1],
    "one plane for all channels": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "read-only": lambda a: read_only(a.copy()),
}
LAID_OUT = [(dtype, layout) for dtype in PIXELS for layout in LAYOUTS if can_be(layout, np.dtype(dtype))]


def picture(dtype: Any, shape: tuple[int, ...] = (4, 5, 3), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0.5, 1, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def every(dtype: str, channels: int = 3) -> np.ndarray:
    """A picture that has every bit pattern of a small dtype in each channel."""
    size = np.dtype(dtype).itemsize
    bits = np.arange(256**size, dtype=f"u{size}").reshape(16**size, 16**size)
    return np.stack([np.roll(bits, 7 * c) for c in range(channels)], -1).view(dtype)


def per_channel(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def chain(image: Any, *, dtype: Any = torch.float32, scale: Any = True, mean: Any = None, std: Any = None) -> Any:
    x = torch.from_numpy(np.array(image, image.dtype.newbyteorder("="), order="C"))
    x = (x[..., None] if x.ndim == 2 else x).movedim(-1, -3).contiguous().float()
    if scale is True and image.dtype.kind == "u":
        x = x.div(np.iinfo(image.dtype).max)
    elif not isinstance(scale, bool):
        x = x.mul(scale)
    x = x if mean is None else x.sub(per_channel(mean))
    x = x if std is None else x.div(per_channel(std))
    return x.to(dtype)


def chain_back(x: torch.Tensor, *, dtype: str = "uint8", mean: Any = None, std: Any = None) -> np.ndarray:
    y = x.detach().float() if x.ndim > 2 else x.detach().float()[None]
    y = y if std is None else y.mul(per_channel(std))
    y = (y if mean is None else y.add(per_channel(mean))).clamp(0, 1)
    if dtype != "float32":
        y = y.mul(np.iinfo(dtype).max).round().nan_to_num(0)
    return np.ascontiguousarray((y.movedim(-3, -1) if x.ndim > 2 else y[0]).numpy()).astype(dtype)


def assert_bits(actual: Any, expected: torch.Tensor) -> None:
    """Fail unless two tensors are alike to the last bit; only a NaN may be any NaN."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[expected.itemsize]
    if not torch.equal(actual.contiguous().view(words), expected.contiguous().view(words)):
        assert_same(actual, expected)


def means_and_stds(n: int) -> st.SearchStrategy[Any]:
    numbers = {"mean": st.floats(-2, 2), "std": st.floats(2**-20, 2**20) | st.floats(-4, -0.01)}
    return st.fixed_dictionaries({k: st.none() | x | st.lists(x, min_size=n, max_size=n) for k, x in numbers.items()})


U8, F32 = picture("uint8"), torch.ones(3, 4, 5)


@given(st.data(), st.sampled_from([1, 3, 4]))
def test_every_uint8_is_exact_for_any_mean_and_std_and_comes_back(data: Any, channels: int) -> None:
    image, options = every("uint8", channels), data.draw(means_and_stds(channels))
    tensor = nd.image_to_torch(image, **options)
    assert_bits(tensor, chain(image, **options))
    assert_same(nd.image_to_numpy(tensor, **options), image)


@settings(max_examples=300)
@given(st.data(), st.sampled_from(LAID_OUT), st.sampled_from([(), (), (0,), (1,), (2,), (3,)]))
def test_any_picture_becomes_what_the_chain_of_torch_makes_of_it(data: Any, case: Any, batch: tuple[int, ...]) -> None:
    channels = data.draw(st.sampled_from([(1,), (3,), (4,)] if batch else [(), (1,), (3,), (4,)]))
    size = data.draw(st.tuples(st.integers(0, 6), st.one_of(st.integers(1, 70), st.integers(0, 9))))
    image = LAYOUTS[case[1]](any_values(np.dtype(case[0]), batch + size + channels, data.draw(st.integers(0, 99))))
    options = data.draw(means_and_stds(*channels or (1,)))
    options["scale"] = data.draw(st.sampled_from([True, True, False, 1, 2, 0.3, 1 / 255]))
    options["dtype"] = data.draw(st.sampled_from(FLOATS))
    before = image.tobytes()
    for memory in FORMATS:
        assert_bits(nd.image_to_torch(image, memory_format=memory, **options), chain(image, **options))
    assert image.tobytes() == before


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("options", [{}, IMAGENET, {"std": [1e-3, 7, -2]}, *({"scale": s} for s in (False, 1, 0.3))])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_every_value_of_a_small_dtype_is_exact(dtype: str, options: dict[str, Any], target: torch.dtype) -> None:
    image = every(dtype)
    assert_bits(nd.image_to_torch(image, dtype=target, **options), chain(image, dtype=target, **options))


@pytest.mark.parametrize("memory", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 6, 33, 4)])
@pytest.mark.parametrize(("dtype", "layout"), LAID_OUT)
def test_picture_in_any_layout_gives_the_memory_asked_for(dtype: str, layout: str, shape: Any, memory: Any) -> None:
    image = LAYOUTS[layout](picture(dtype, shape))
    for source in (image, torch.from_numpy(image)) if layout in SHAREABLE else (image,):
        made = [(nd.image_to_torch(source, mean=0.4, std=0.3, memory_format=memory), chain(image, mean=0.4, std=0.3))]
        if dtype.startswith("u"):
            own = nd.image_to_torch(source, dtype=dtype, scale=False, memory_format=memory)
            made.append((own, tensor_holding(np.moveaxis(image, -1, -3))))
        for tensor, expected in made:
            assert_bits(tensor, expected)
            assert (tensor if memory is torch.contiguous_format else tensor.movedim(-3, -1)).is_contiguous()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (2, 4, 5, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_result_is_new_memory_even_where_nothing_has_to_change(dtype: str, shape: tuple[int, ...]) -> None:
    image = picture(dtype, shape)
    tensor = nd.image_to_torch(image, dtype=dtype, scale=False)
    assert_independent(tensor, image)
    assert_independent(nd.image_to_numpy(tensor, dtype="float32" if dtype == "float32" else None), tensor)


@pytest.mark.parametrize("mean", [0.4, np.float32(0.4), (0.1, 0.2, 0.3), [0.1, 2, -3], np.array([0.1, 0.2, 0.3])])
@pytest.mark.parametrize("std", [None, 3, np.array([0.1, 0.2, 0.3], np.float32)])
@pytest.mark.parametrize("dtype", [torch.float16, "float16", np.float16, np.dtype("float16")], ids=repr)
def test_mean_std_and_dtype_may_be_named_in_every_way(mean: Any, std: Any, dtype: Any) -> None:
    expected = chain(U8, dtype=torch.float16, mean=mean, std=std)
    assert_bits(nd.image_to_torch(U8, dtype=dtype, mean=mean, std=std, device="cpu"), expected)


@pytest.mark.parametrize("shape", [(1024, 1024, 3), (8, 512, 512, 3), (1023, 1021, 4), (1500, 1501)])
@pytest.mark.parametrize(("dtype", "target"), [("uint8", torch.float32), ("uint16", torch.float16)])
def test_big_picture_is_as_exact_as_a_small_one(shape: tuple[int, ...], dtype: str, target: torch.dtype) -> None:
    image, options = picture(dtype, shape), {"dtype": target, "mean": 0.45, "std": 0.225}
    expected = chain(image, **options)
    for memory in FORMATS:
        assert_bits(nd.image_to_torch(image, memory_format=memory, **options), expected)
    out = torch.zeros((*expected.shape[:-1], expected.shape[-1] + 3), dtype=target)[..., 1:-2]
    assert_bits(nd.image_to_torch(np.array(image[:, ::-1])[:, ::-1], out=out, **options), expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_list_of_pictures_is_a_batch(shape: tuple[int, ...]) -> None:
    images = [picture("uint8", shape, seed) for seed in range(3)]
    expected = torch.stack([chain(image, mean=0.5) for image in images])
    for sources in (images, tuple(np.array(i[:, ::-1])[:, ::-1] for i in images), [torch.tensor(i) for i in images]):
        for out in (None, torch.empty_like(expected)):
            assert_bits(nd.image_to_torch(sources, mean=0.5, out=out), expected)
    batch = nd.image_to_torch(images[:1], mean=0.5, memory_format=torch.channels_last)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert_bits(batch, expected[:1])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16", "F", "P", "CMYK", "LA", "I", "HSV"])
def test_pillow_picture_is_its_pixels_or_refused_with_the_conversion(mode: str) -> None:
    pillow = pytest.importorskip("PIL.Image")
    helps = {"LA": 'convert("RGBA")', "I": "astype(numpy.uint16)"}
    if mode in ("P", "CMYK", "LA", "I", "HSV"):
        with pytest.raises(TYPE, match=re.escape(helps.get(mode, 'convert("RGB")'))):
            nd.image_to_torch(pillow.new(mode, (5, 4)))
        return
    dtype = {"I;16": "uint16", "F": "float32"}.get(mode, "uint8")
    image = picture(dtype, {"RGB": (4, 5, 3), "RGBA": (4, 5, 4)}.get(mode, (4, 5)))
    image = image // 128 * 255 if mode == "1" else image
    source = pillow.fromarray(image).convert(mode)
    assert_bits(nd.image_to_torch(source, mean=0.4, std=0.2), chain(image, mean=0.4, std=0.2))
    assert_bits(nd.image_to_torch([source, source]), torch.stack([chain(image)] * 2))
    assert np.array_equal(np.asarray(source), image > 0 if mode == "1" else image)


@pytest.mark.cuda
def test_picture_goes_to_the_gpu_and_comes_back() -> None:
    tensor = nd.image_to_torch(U8, device="cuda", **IMAGENET)
    assert tensor.device.type == "cuda"
    assert_bits(tensor.cpu(), chain(U8, **IMAGENET))
    assert_same(nd.image_to_numpy(tensor, **IMAGENET), U8)


# ---- out ----

OUTS: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "plain": lambda d: torch.full((3, 4, 5), 7, dtype=d),
    "every other item": lambda d: torch.full((3, 4, 10), 7, dtype=d)[..., ::2],
    "channels last": lambda d: torch.full((4, 5, 3), 7, dtype=d).permute(2, 0, 1),
    "slot of a batch": lambda d: torch.full((3, 3, 4, 5), 7, dtype=d)[1],
    "part of a larger picture": lambda d: torch.full((5, 7, 8), 7, dtype=d)[1:4, 2:6, 1:6],
}
BAD_OUTS = [
    *((SHAPE, torch.ones(shape)) for shape in ((3, 5, 4), (4, 5, 3), (1, 3, 4, 5))),
    *((OPTION, torch.ones(3, 4, 5, dtype=dtype)) for dtype in (torch.float16, torch.float64, torch.uint8)),
    *((OPTION, torch.ones(60).as_strided((3, 4, 5), strides)) for strides in ((20, 5, 0), (20, 4, 1), (1, 5, 1))),
    *((OPTION, x) for x in (F32.to("meta"), F32.to_sparse(), F32.clone().requires_grad_(), np.ones((3, 4, 5), "f4"))),
]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8])
@pytest.mark.parametrize("layout", OUTS)
def test_out_is_written_and_returned_and_nothing_around_it_changes(layout: str, dtype: torch.dtype) -> None:
    out, own = OUTS[layout](dtype), {"dtype": dtype, "scale": dtype != torch.uint8}
    place = out.data_ptr(), out.stride()
    for image in (U8, U8[::-1]):
        assert nd.image_to_torch(image, out=out, **own) is out
        assert_bits(out, chain(image, **own))
    assert (out.data_ptr(), out.stride()) == place
    out.fill_(7)
    assert (torch.empty(0, dtype=dtype).set_(out.untyped_storage()) == 7).all()


@pytest.mark.parametrize(("error", "out"), BAD_OUTS)
def test_out_that_does_not_fit_is_refused_untouched(error: type[nd.NdtorchError], out: Any) -> None:
    with pytest.raises(error) as caught:
        nd.image_to_torch(U8, out=out)
    assert error is OPTION or (caught.value.expected, caught.value.got) == ((3, 4, 5), out.shape)
    assert getattr(out, "is_meta", False) or getattr(out, "is_sparse", False) or (out == 1).all()


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(("step", "start"), [(1, 0), (1, 1), (1, 60), (1, 119), (1, 120), (2, 0), (2, 1), (2, 2)])
def test_out_may_lie_beside_or_between_the_pixels_but_not_on_them(step: int, start: int, batch: bool) -> None:
    base = torch.rand(180)
    image, out = (base[i : i + 60 * step : step].view(s) for i, s in ((120 - 60 * step, (4, 5, 3)), (start, (3, 4, 5))))
    before, expected = base.clone(), chain(image.numpy())
    source, target = ([image.numpy()], out[None]) if batch else (image.numpy(), out)
    if (step, start) in ((1, 0), (1, 120), (2, 1)):
        assert nd.image_to_torch(source, out=target) is target
        before[start : start + 60 * step : step] = expected.flatten()
    else:
        with pytest.raises(OPTION):
            nd.image_to_torch(source, out=target)
    assert_same(base, before)


# ---- back ----


@pytest.mark.parametrize("memory", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 71, 3), (0, 4, 5, 3), (0, 5, 3), (8, 512, 512, 3)])
@pytest.mark.parametrize("there", [{}, IMAGENET, {"dtype": "float16"}, {"dtype": "uint8", "scale": False}])
def test_uint8_comes_back_from_every_way_it_went(there: dict[str, Any], shape: tuple[int, ...], memory: Any) -> None:
    image, back = picture("uint8", shape), IMAGENET if there is IMAGENET else {}
    tensor = nd.image_to_torch(image, memory_format=memory, **there)
    assert_same(nd.image_to_numpy(tensor, **back), image, strides=True)


def test_every_uint16_comes_back() -> None:
    assert_same(nd.image_to_numpy(nd.image_to_torch(every("uint16")), dtype="uint16"), every("uint16"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("source", [*FLOATS, torch.float64])
@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (3, 4, 35), (2, 4, 5, 6), (3, 1024, 1024)])
@pytest.mark.parametrize("options", [{}, {"mean": 0.45, "std": 0.225}, {"mean": 0.1}])
def test_floats_become_what_the_chain_of_torch_makes_of_them(shape: Any, source: Any, dtype: str, options: Any) -> None:
    plain = torch.randn(shape).to(source)
    wide, before = plain.repeat_interleave(2, -1)[..., ::2], plain.clone()
    for tensor in (plain, wide, plain.transpose(-1, -2), plain.clone().requires_grad_(), plain[..., :1].expand(shape)):
        array = nd.image_to_numpy(tensor, dtype=dtype, **options)
        assert_same(array, chain_back(tensor, dtype=dtype, **options), strides=True)
    assert torch.equal(plain, before)


@pytest.mark.parametrize(("dtype", "layout"), [*LAID_OUT, *(("int64", layout) for layout in LAYOUTS)])
def test_array_goes_back_too_and_integers_keep_their_dtype_and_values(dtype: str, layout: str) -> None:
    image = LAYOUTS[layout](picture(dtype, (2, 3, 4, 5)))
    expected = np.moveaxis(np.array(image, dtype), 1, -1)
    expected = np.ascontiguousarray(expected) if dtype[0] in "ui" else chain_back(tensor_holding(image))
    for source in (image, list(image), tensor_holding(image), list(tensor_holding(image))):
        assert_same(nd.image_to_numpy(source), expected, strides=True)


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_what_is_no_light_is_clamped_and_nan_is_black(dtype: str, most: int) -> None:
    tensor = torch.tensor([[-1, 0, 1, 2, -np.inf, np.inf, 1e30, -1e-30, np.nan] * 9])
    expected = [0, 0, most, most, 0, most, most, 0, np.nan if dtype == "float32" else 0] * 9
    for source in (tensor, tensor.double(), tensor.bfloat16()):
        np.testing.assert_array_equal(nd.image_to_numpy(source, dtype=dtype), np.array([expected], dtype), strict=True)


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("uint16", 65535)])
def test_half_rounds_to_even(dtype: str, most: int) -> None:
    halves = np.arange(most, dtype=np.float32) + np.float32(0.5)
    light = halves / np.float32(most)
    exact = light * np.float32(most) == halves
    assert exact.sum() > most / 2
    array = nd.image_to_numpy(torch.from_numpy(light[exact][None]), dtype=dtype)
    assert_same(array, np.rint(halves[exact]).astype(dtype)[None])


# ---- refusals ----

THERE, BACK, NAN = "image_to_torch", "image_to_numpy", float("nan")
ODD = {"index": 2, "expected": (4, 5, 3), "got": (3, 5, 3)}
REFUSED: list[tuple[str, type[nd.NdtorchError], Any, dict[str, Any], dict[str, Any]]] = [
    (THERE, SHAPE, picture("uint8", (3, 4, 5)), {}, {"hint": r"permute|transpose|None\]"}),
    *((THERE, SHAPE, np.zeros(s, "u1"), {}, {}) for s in ((), (3,), (4, 5, 2), (2, 3, 4, 5), (1, 1, 4, 5, 3))),
    *((THERE, SHAPE, i, {}, f) for i, f in (([], {}), ([U8, U8, U8[:3]], ODD), ([U8, U8[..., :1]], {"index": 1}))),
    *((THERE, SHAPE, U8, {o: [1] * n}, {"expected": 3, "got": n}) for o in ("mean", "std") for n in (0, 1, 2, 4)),
    *((THERE, DTYPE, U8.astype(d), {}, {}) for d in ("bool", "int8", "int16", "int64", "uint32", "complex64")),
    *((THERE, DTYPE, U8, {"dtype": d, "scale": False}, {}) for d in ("float64", "int64", "uint16", "complex64")),
    *((THERE, DTYPE, U8, {"dtype": "uint8", **o}, {}) for o in ({}, {"scale": 0.5}, {"scale": False, "mean": 1})),
    *((THERE, TYPE, image, {}, {}) for image in (np.ma.masked_equal(U8, 0), object(), "cat.png")),
    *((THERE, OPTION, U8, {"scale": v}, {}) for v in (0, 0.0, -1, NAN, "255", None, [1, 1, 1])),
    *((THERE, OPTION, U8, {"std": v}, {}) for v in (0, 0.0, (1, 0, 1), NAN, (1, 1, float("inf")))),
    *((THERE, OPTION, U8, {"mean": v}, {}) for v in (NAN, (0, 0, float("inf")), "grey")),
    *((THERE, OPTION, U8, {"memory_format": v}, {}) for v in ("channels_last", torch.preserve_format)),
    (THERE, OPTION, U8, {"device": "abacus"}, {}),
    *((BACK, SHAPE, torch.ones(s), {}, {}) for s in ((), (3,), (5, 4, 3), (2, 4, 5), (2, 5, 4, 3), (1, 1, 3, 4, 5))),
    *((BACK, SHAPE, images, {}, facts) for images, facts in (([], {}), ([F32, F32, F32[:1]], {"index": 2}))),
    *((BACK, SHAPE, F32, {o: [1] * n}, {"expected": 3, "got": n}) for o in ("mean", "std") for n in (0, 1, 2, 4)),
    *((BACK, OPTION, x, o, {}) for x, o in ((F32, {"std": 0}), (F32.byte(), {"mean": 1}), (F32.byte(), {"std": 2}))),
    *((BACK, DTYPE, x, {"dtype": d}, {}) for x, d in ((F32, "float64"), (F32, "int64"), (F32.cfloat(), None))),
]


@pytest.mark.parametrize(("name", "error", "image", "options", "facts"), REFUSED)
def test_refusal_says_why_and_changes_nothing(name: str, error: Any, image: Any, options: Any, facts: Any) -> None:
    before = U8.copy()
    with pytest.raises(error, match=f"^{name}: ") as caught:
        getattr(nd, name)(image, **options)
    for fact, value in facts.items():
        got = getattr(caught.value, fact)
        assert re.search(value, got) if fact == "hint" else got == value
    if name == THERE:
        out = torch.full((len(image), 3, 4, 5) if isinstance(image, list) else (3, 4, 5), 7.0)
        with pytest.raises(nd.NdtorchError):
            nd.image_to_torch(image, out=out, **options)
        assert (out == 7).all()
    assert_same(U8, before)
