"""Pillow's pictures: their pixels as `numpy.asarray` gives them, copied once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same, tensor_holding

import ndtorch as nd

Image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

BYTES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa", "La"]
MODES = [*BYTES, "I", "F", "I;16", "I;16L", "I;16B", "I;16N"]


def picture(mode: str, size: tuple[int, int] = (7, 5)) -> Any:
    blank = Image.new(mode, size)
    raw = np.random.default_rng(4).integers(0, 120, len(blank.tobytes()), dtype=np.uint8)
    made = Image.frombytes(mode, size, raw.tobytes())
    if mode in ("P", "PA"):
        made.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    return made


def encoded(image: Any, kind: str, **words: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **words)
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(7, 5), (1, 1), (300, 700)])
def test_picture_of_every_mode_comes_out_as_numpy_sees_it(mode: str, size: tuple[int, int]) -> None:
    image = picture(mode, size)
    expected = np.asarray(image)
    assert_same(nd.to_torch(image), tensor_holding(expected != 0 if mode == "1" else expected))
    assert_same(nd.to_numpy(image), np.array(expected))


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_empty_picture_comes_out_empty(size: tuple[int, int]) -> None:
    assert nd.to_torch(Image.new("RGB", size)).shape == (*size[::-1], 3)
    assert nd.to_numpy(torch.zeros((*size[::-1], 3), dtype=torch.uint8), like=Image.new("RGB", (1, 1))).size == size


def test_bits_come_out_as_proper_bools() -> None:
    image = Image.new("1", (3, 2), 1)
    assert np.asarray(image).view(np.uint8).max() == 255, "the trap: torch counts with these bytes"
    tensor = nd.to_torch(image)
    assert tensor.view(torch.uint8).unique().tolist() == [1]
    assert int(tensor.sum()) == 6


def test_plan_knows_the_header_alone(tmp_path: Path) -> None:
    picture("RGB", (40, 30)).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        plan = nd.explain(image)
        assert (plan.dtype, plan.shape, plan.nbytes_copied) == ("uint8", (30, 40, 3), 3600)
        assert plan.reason == "Pillow keeps its pixels in a layout of its own"
        assert image.fp is not None, "explain has read the file"
        with pytest.raises(nd.CopyRequiredError, match="a layout of its own"):
            nd.to_torch(image, copy=False)
        assert_same(nd.to_torch(image), tensor_holding(np.asarray(picture("RGB", (40, 30)))))


def test_palette_is_noted() -> None:
    assert "convert('RGB')" in nd.explain(picture("P")).notes[0]
    assert "convert('RGBA')" in nd.explain(picture("PA")).notes[0]
    assert nd.explain(picture("L")).notes == ()


def test_result_belongs_to_the_caller() -> None:
    image = picture("RGB")
    nd.to_torch(image)[:] = 0
    assert np.asarray(image).any()
    assert nd.to_numpy(image).flags.writeable


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": "float16", "casting": "exact"}, {"copy": True}])
def test_options_reach_the_pixels(options: dict[str, Any]) -> None:
    image = picture("RGB")
    expected = torch.from_numpy(np.array(image)).to(getattr(torch, options.get("dtype", "uint8")))
    assert_same(nd.to_torch(image, **options), expected)
    assert_same(nd.to_torch([{"image": image, "name": "a"}], **options), [{"image": expected, "name": "a"}])


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "1"), ("JPEG", "CMYK"), ("TIFF", "F"), ("GIF", "P"), ("BMP", "L")]
)
def test_file_of_every_kind_is_decoded(kind: str, mode: str) -> None:
    raw = encoded(picture(mode, (30, 20)), kind).getvalue()
    with Image.open(io.BytesIO(raw)) as image, Image.open(io.BytesIO(raw)) as twin:
        assert_same(nd.to_numpy(image), np.array(twin))


def test_later_frame_is_the_one_that_was_sought() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 100, 200)]
    with Image.open(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) as image:
        for i in range(3):
            image.seek(i)
            assert_same(nd.to_numpy(image), np.array(image))


# --- files that are broken


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_truncated_file_is_an_error(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    raw = encoded(noise.convert("P") if kind == "GIF" else noise, kind).getvalue()
    with Image.open(io.BytesIO(raw[: len(raw) * 2 // 3])) as image:
        with pytest.raises(nd.NdtorchError, match="cannot read") as caught:
            nd.to_torch({"image": image})
        assert caught.value.path == "['image']"


def test_damaged_file_is_an_error() -> None:
    raw = bytearray(encoded(picture("RGB", (50, 50)), "PNG").getvalue())
    place = raw.index(b"IDAT") + 8
    raw[place : place + 40] = bytes(40)
    with Image.open(io.BytesIO(raw)) as image, pytest.raises(nd.NdtorchError, match="cannot read"):
        nd.to_torch(image)


def test_closed_picture_is_an_error() -> None:
    image = Image.open(encoded(picture("RGB"), "PNG"))
    image.close()
    with pytest.raises(nd.NdtorchError, match="cannot read"):
        nd.to_torch(image)


def test_header_that_disagrees_with_the_pixels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture("RGB")
    monkeypatch.setattr(image, "load", lambda: setattr(image, "_mode", "L"))
    with pytest.raises(nd.NdtorchError, match="its header and its pixels disagree"):
        nd.to_torch(image)


# --- the way back


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("through", [nd.to_torch, nd.to_numpy])
def test_example_gives_an_equal_picture(mode: str, through: Any) -> None:
    image = picture(mode)
    image.info["dpi"] = (72, 72)
    back = nd.to_numpy(through(image), like=image)
    assert back.mode == mode
    if mode != "F":  # whose NaN are unequal to themselves
        assert back == image
    assert back.info == image.info
    assert_same(nd.to_numpy(back), nd.to_numpy(image))


def test_example_of_another_size_brings_its_mode_and_palette_alone() -> None:
    like = picture("P")
    back = nd.to_numpy(torch.ones((2, 9), dtype=torch.uint8), like=like)
    assert (back.mode, back.size) == ("P", (9, 2))
    assert back.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_palette_with_alpha_comes_back() -> None:
    like = Image.new("P", (2, 2), 1)
    like.putpalette([1, 2, 3, 4, 5, 6, 7, 8], "RGBA")
    assert nd.to_numpy(nd.to_torch(like), like=like).convert("RGBA") == like.convert("RGBA")


def test_channels_in_front_are_an_error_with_the_call_that_helps() -> None:
    with pytest.raises(nd.ShapeMismatchError, match="picture of mode RGB") as caught:
        nd.to_numpy(torch.zeros((3, 5, 7), dtype=torch.uint8), like=picture("RGB"))
    assert "permute(1, 2, 0)" in caught.value.hint
    with pytest.raises(nd.ShapeMismatchError):
        nd.to_numpy(torch.zeros((3, 5, 7), dtype=torch.uint8), like=picture("L"))


def test_floats_do_not_become_pixels_unasked() -> None:
    with pytest.raises(nd.LossyCastError):
        nd.to_numpy(torch.rand(5, 7, 3), like=picture("RGB"))


def test_transposed_tensor_comes_back_as_a_picture() -> None:
    image = picture("RGB")
    planes = nd.to_torch(image).permute(2, 0, 1).contiguous()
    assert nd.to_numpy(planes.permute(1, 2, 0), like=image) == image


def test_picture_subclass_is_a_picture(tmp_path: Path) -> None:
    image = Image.open(encoded(picture("RGB"), "PNG"))
    assert type(image) is not Image.Image
    assert_same(nd.to_numpy({"x": image}), {"x": np.array(image)})
