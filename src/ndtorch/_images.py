"""Pictures: pixels (HWC) to normalised planes (CHW) and back, each in one fused pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from . import _bridge, _native, _trace
from ._casting import copy_into
from ._convert import to_numpy, to_torch
from ._dtypes import BY_NAME, DType, from_numpy_dtype
from ._errors import InvalidOptionError, NdtorchError, ShapeMismatchError, UnsupportedDtypeError, UnsupportedTypeError
from ._options import resolve_device
from ._spec import describe
from ._stack import array_of, check_out, finish, readable, stack
from ._torch_dtypes import resolve

AnyArray = npt.NDArray[Any]

CHANNELS = (1, 3, 4)
_LARGEST = {"uint8": 255.0, "uint16": 65535.0}
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_FLOATS = ("float32", "float16", "bfloat16")
PIXELS = (*_LARGEST, "float16", "float32", "float64")
_PILLOW_MODES = ("1", "L", "RGB", "RGBA", "I;16", "F")
_PILLOW_HINTS = {
    "I": "image_to_torch(numpy.asarray(image).astype(numpy.uint16)), for values up to 65535",
    "LA": 'image.convert("RGBA")',
    "PA": 'image.convert("RGBA")',
    "La": 'image.convert("LA").convert("RGBA")',
}


def image_to_torch(
    image: Any,
    /,
    *,
    dtype: Any = None,
    scale: bool | float = True,
    mean: Any = None,
    std: Any = None,
    device: Any = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn pixels into a tensor for a network: planes first, scaled and normalised, in one pass.

    For float32 the result is, bit for bit, that of ``permute, contiguous, float, div(255), sub(mean), div(std)`` in
    torch. Other dtypes are computed in float32 and rounded once.

    Memory:
        Always new memory, written once; ``out=`` writes into yours instead.

    Args:
        image: HW, HWC or NHWC pixels with 1, 3 or 4 channels, uint8, uint16 or floating: an array of any layout, a
            tensor, a Pillow picture, or a list of equal ones, which is a batch.
        dtype: float32 (None), float16 or bfloat16; or the picture's own integer dtype, with ``scale=False``, to move
            the pixels only.
        scale: True divides integers by their largest value (255, 65535) and leaves floats alone, False leaves all
            alone, a positive number multiplies every pixel.
        mean: Subtracted after scaling, a number or one per channel.
        std: Divided by after that, a number or one per channel.
        device: Where the result lies.
        memory_format: ``torch.contiguous_format`` for planes in memory, ``torch.channels_last`` for pixels.
        out: A tensor of the result's shape and dtype to write into.

    Returns:
        CHW for one picture, NCHW for a batch; HW gives one channel.

    Raises:
        ShapeMismatchError: It is no picture, or pictures of a list differ; ``mean`` or ``std`` is not one per channel;
            ``out`` has another shape than the result.
        UnsupportedDtypeError: Pixels of such a dtype mean nothing here, or the result cannot have it.
        InvalidOptionError: An option has no such value, or ``out`` is no memory for the result.

    >>> import numpy as np, ndtorch as nd
    >>> pixels = np.full((2, 2, 3), 255, dtype=np.uint8)
    >>> nd.image_to_torch(pixels, mean=(0.5, 0.5, 0.0), std=0.5)[:, 0, 0]
    tensor([1., 1., 2.])
    """
    options = (dtype, scale, mean, std, device, memory_format, out)
    if _trace.watching():
        source = _name_of(image)
        reason = "pixels become planes in new memory"
        return cast(torch.Tensor, _trace.observe("image_to_torch", source, reason, lambda: _to_torch(image, *options)))
    return _to_torch(image, *options)


def _to_torch(
    image: Any,
    dtype: Any,
    scale: bool | float,
    mean: Any,
    std: Any,
    device: Any,
    memory_format: torch.memory_format,
    out: torch.Tensor | None,
) -> torch.Tensor:
    subject = "image_to_torch"
    pixels = pixels_of(image, subject)
    whole = as_batch(pixels, subject)
    recipe = recipe_of(subject, whole.dtype, whole.shape[3], dtype, scale, mean, std)
    if recipe is None:
        raise no_pixels(subject, pixels)
    is_interleaved = is_channels_last(memory_format, subject)
    place = resolve_device(subject, device)
    memory = whole.shape if is_interleaved else (whole.shape[0], whole.shape[3], *whole.shape[1:3])
    if pixels.ndim != 4:
        memory = memory[1:]
    if out is None:
        result, target = _bridge.fresh(memory, recipe.row)
        if is_interleaved:
            result = result.movedim(-1, -3)
    else:
        shape = (*memory[:-3], memory[-1], *memory[-3:-1]) if is_interleaved else memory
        sources = [pixels_of(one, subject) for one in image] if isinstance(image, list | tuple) else [pixels]
        check_out(subject, out, shape, recipe.row, place, sources)
        result, target = _memory_of(out, is_interleaved) or _bridge.fresh(memory, recipe.row)
        if result is not out and is_interleaved:
            result = result.movedim(-1, -3)
    if not target.size:
        pass
    elif recipe.steps is not None:
        _native.fill_planes(target, whole, is_interleaved, recipe.steps)
    else:
        planes = whole if is_interleaved else whole.transpose(0, 3, 1, 2)
        copy_into(target, planes.reshape(target.shape), casting="no", subject=subject, what=recipe.row)
    return finish(result, out, place)


def image_to_numpy(image: Any, /, *, mean: Any = None, std: Any = None, dtype: Any = None) -> AnyArray:
    """Turn the planes of a tensor back into pixels that can be shown or saved.

    Floats become ``x * std + mean``, clamped to [0, 1]; for integers times their largest value, rounded to nearest
    even, and NaN becomes 0. Every uint8 comes back as it went through `image_to_torch` in float32.

    Memory:
        Always new memory, written once, row-major.

    Args:
        image: CHW or NCHW with 1, 3 or 4 channels, or HW: a tensor or array of floats or integers, or a list of equal
            ones, which is a batch. Integers keep dtype and values.
        mean: As given to `image_to_torch`.
        std: As given to `image_to_torch`.
        dtype: uint8 (None), uint16 or float32.

    Returns:
        HWC or NHWC pixels; HW for HW. One channel stays an axis: Pillow wants ``pixels[..., 0]``.

    Raises:
        ShapeMismatchError: It is no picture, or pictures of a list differ; ``mean`` or ``std`` is not one per channel.
        UnsupportedDtypeError: No picture has such a dtype.
        InvalidOptionError: ``mean`` or ``std`` was given for integers, or has no such value.

    >>> import torch, ndtorch as nd
    >>> nd.image_to_numpy(torch.tensor([[[0.0, 0.5, 2.0]]]))[..., 0]
    array([[  0, 128, 255]], dtype=uint8)
    """
    if _trace.watching():
        source = _name_of(image)
        reason = "planes become pixels in new memory"
        return cast(
            AnyArray, _trace.observe("image_to_numpy", source, reason, lambda: _to_numpy(image, mean, std, dtype))
        )
    return _to_numpy(image, mean, std, dtype)


def _to_numpy(image: Any, mean: Any, std: Any, dtype: Any) -> AnyArray:
    subject = "image_to_numpy"
    planes = _planes_of(image, subject)
    whole = (
        planes[None, :, :, None] if planes.ndim == 2 else _channels_last(planes if planes.ndim == 4 else planes[None])
    )
    shape = planes.shape if planes.ndim == 2 else whole.shape[4 - planes.ndim :]
    own = from_numpy_dtype(planes.dtype)
    if own is None or own.kind not in ("float", "int", "uint") or own.name.startswith("float8"):
        raise no_pixels(subject, planes, "floats or integers")
    if own.kind != "float":
        return _moved(whole, shape, own, mean, std, dtype)
    recipe = _way_back(
        subject, whole.shape[3], _hashable(dtype), _numbers(subject, "mean", mean), _numbers(subject, "std", std)
    )
    pixels = np.empty(shape, recipe.row.numpy)
    if pixels.size and not (own.name in _FLOATS and _native.fill_pixels(pixels, whole, recipe.steps)):
        plain = np.empty((whole.shape[0], whole.shape[3], *whole.shape[1:3]), np.float32)
        copy_into(plain, whole.transpose(0, 3, 1, 2), casting="unsafe", subject=subject, what=own)
        _native.fill_pixels(pixels, _channels_last(plain), recipe.steps)
    return pixels


def _channels_last(planes: AnyArray) -> AnyArray:
    """NCHW seen as NHWC."""
    return planes.transpose(0, 2, 3, 1)


# --- what is a picture


def _name_of(image: Any) -> str:
    if isinstance(image, list | tuple):
        return f"{len(image)} pictures"
    return str(describe(image)) if isinstance(image, np.ndarray | torch.Tensor) else f"a {type(image).__name__}"


def pixels_of(image: Any, subject: str) -> AnyArray:
    """A picture or a batch as one array, in its own memory where it has any."""
    if type(image) is np.ndarray:
        return readable(image, subject)
    if isinstance(image, list | tuple):
        pictures = [pixels_of(one, subject) for one in image]
        return _batch_of(pictures, [one[..., None] if one.ndim == 2 else one for one in pictures], subject)
    if is_pillow(image):
        check_mode(image, subject)
        return np.asarray(image.convert("L") if image.mode == "1" else image)
    return _array_of(image, subject)


def _planes_of(image: Any, subject: str) -> AnyArray:
    if isinstance(image, list | tuple):
        pictures = [_planes_of(one, subject) for one in image]
        if pictures and pictures[0].ndim == 4:
            fact = "a list of batches is no batch"
            raise ShapeMismatchError(
                subject, fact, expected="CHW or HW", got=pictures[0].shape, hint="torch.cat(batches)"
            )
        return _batch_of(pictures, pictures, subject)
    planes = readable(image, subject) if type(image) is np.ndarray else _array_of(image, subject)
    channels = planes.shape[-3] if planes.ndim in (3, 4) else 1
    if planes.ndim not in (2, 3, 4) or channels not in CHANNELS:
        is_pixels = planes.ndim in (3, 4) and planes.shape[-1] in CHANNELS
        raise ShapeMismatchError(
            subject,
            f"{describe(planes)} are no planes of a picture",
            expected="CHW or NCHW with 1, 3 or 4 channels, or HW",
            got=planes.shape,
            hint="these look like pixels already" if is_pixels else "tensor.permute(...) puts the channels first",
        )
    return planes


def _array_of(image: Any, subject: str) -> AnyArray:
    if isinstance(image, np.ndarray) and not isinstance(image, np.ma.MaskedArray):
        return readable(np.asarray(image), subject)
    if not isinstance(image, torch.Tensor | np.ma.MaskedArray) and not hasattr(image, "__array__"):
        cls = type(image).__name__
        fact = f"cannot convert a {cls}"
        raise UnsupportedTypeError(subject, fact, expected="a picture or a list of pictures", got=cls)
    try:
        return array_of(image if isinstance(image, torch.Tensor) else to_torch(image, readonly="share"), subject)
    except NdtorchError as error:
        raise error.renamed(subject) from None


def check_mode(image: Any, subject: str) -> None:
    """Raise unless the pixels of a picture of Pillow mean what an array of them does.

    Raises:
        UnsupportedTypeError: Its mode is another.
    """
    if image.mode not in _PILLOW_MODES:
        fact = f"cannot convert a Pillow picture of mode {image.mode!r}"
        raise UnsupportedTypeError(
            subject,
            fact,
            expected="one of " + ", ".join(_PILLOW_MODES),
            got=image.mode,
            hint=_PILLOW_HINTS.get(image.mode, 'image.convert("RGB")'),
        )


def is_pillow(image: Any) -> bool:
    """Whether it is a picture of Pillow."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(image).__mro__)


def _batch_of(pictures: Sequence[AnyArray], shaped: Sequence[AnyArray], subject: str) -> AnyArray:
    if not pictures:
        raise ShapeMismatchError(subject, "there are no pictures", expected="at least one", got="none")
    for i, one in enumerate(pictures):
        if one.shape != pictures[0].shape:
            raise ShapeMismatchError(
                subject,
                f"picture {i} has another shape than picture 0",
                expected=pictures[0].shape,
                got=one.shape,
                hint='image.convert("RGB") gives all the same channels, image.resize((width, height)) the same size',
                index=i,
            )
        if one.dtype.newbyteorder("=") != pictures[0].dtype.newbyteorder("="):
            expected, got = pictures[0].dtype.name, one.dtype.name
            fact = f"picture {i} is {got} and picture 0 {expected}: white is another number"
            hint = "convert each, then ndtorch.stack"
            raise UnsupportedDtypeError(subject, fact, expected=expected, got=got, hint=hint, index=i)
    try:
        return np.asarray(to_numpy(stack(shaped)))
    except NdtorchError as error:
        raise error.renamed(subject) from None


def as_batch(pixels: AnyArray, subject: str) -> AnyArray:
    """The same memory as NHWC."""
    ndim = pixels.ndim
    if ndim == 2:
        return pixels[None, :, :, None]
    if ndim in (3, 4) and pixels.shape[-1] in CHANNELS:
        return pixels if ndim == 4 else pixels[None]
    hint = None
    if ndim in (3, 4) and pixels.shape[-3] in CHANNELS:
        hint = "these look like planes: numpy.moveaxis(image, -3, -1), a transpose, gives pixels"
    elif ndim == 3:
        hint = "image[..., None] if these are grey pictures"
    raise ShapeMismatchError(
        subject,
        f"{describe(pixels)} is no picture",
        expected="HW, or HWC or NHWC with 1, 3 or 4 channels",
        got=pixels.shape,
        hint=hint,
    )


def no_pixels(subject: str, array: AnyArray, expected: str = ", ".join(PIXELS)) -> UnsupportedDtypeError:
    """Make the error for an array whose numbers mean no brightness."""
    fact = f"cannot take {describe(array)} for a picture"
    hint = "image.astype('uint8') if its numbers are 0 to 255"
    return UnsupportedDtypeError(subject, fact, expected=expected, got=str(array.dtype), hint=hint)


def _wrong_dtype(subject: str, row: DType, own: DType) -> UnsupportedDtypeError:
    hint = None
    if row is own and own.kind == "uint":
        hint = f"scale=False without mean and std moves {own.name} pixels as they are"
    fact = f"dtype={row.name} cannot hold what becomes of {own.name} pixels"
    return UnsupportedDtypeError(subject, fact, expected="float32, float16 or bfloat16", got=row.name, hint=hint)


# --- what becomes of a pixel


class Recipe(NamedTuple):
    """The result's dtype and what the kernels do to each pixel; ``None``: its bytes are only moved."""

    row: DType
    steps: _native.Affine | None


def _hashable(dtype: Any) -> Any:
    """The same dtype; a list or dict, which is none, by its name."""
    return dtype if dtype.__hash__ else repr(dtype)


def _numbers(subject: str, option: str, value: Any) -> Any:
    """One number or several, as something that a cache can look up."""
    if value is None or type(value) is float:
        return value
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        if type(value) in (tuple, list) or np.ndim(value):
            return tuple(map(float, value))
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        fact = f"{option}={value!r} is no number"
        raise InvalidOptionError(subject, fact, expected="a number or one per channel", got=repr(value)) from None


def recipe_of(
    subject: str, pixels: np.dtype[Any], channels: int, dtype: Any, scale: Any, mean: Any, std: Any
) -> Recipe | None:
    """What to do with pixels of a dtype, as `image_to_torch` documents it; ``None`` where they are no pixels."""
    means, stds = _numbers(subject, "mean", mean), _numbers(subject, "std", std)
    words = (subject, pixels, channels, dtype, scale, means, stds)
    try:  # -0.0 equals 0.0 and is another number: no cache then
        is_zero = means == 0 or (type(means) is tuple and 0 in means)
        return _recipe.__wrapped__(*words) if is_zero else _recipe(*words)
    except TypeError:  # something has no hash
        return _recipe.__wrapped__(*words)


@lru_cache(maxsize=256, typed=True)
def _recipe(
    subject: str, pixels: np.dtype[Any], channels: int, dtype: Any, scale: Any, mean: Any, std: Any
) -> Recipe | None:
    own = from_numpy_dtype(pixels)
    if own is None or own.name not in PIXELS:
        return None
    row = BY_NAME["float32"] if dtype is None else resolve(dtype, subject=subject)
    divisor, factor = 0.0, 1.0
    if isinstance(scale, bool | np.bool_):
        divisor = _LARGEST.get(own.name, 0.0) if scale else 0.0
    elif isinstance(scale, int | float) and 0 < scale < _LARGEST_FLOAT:
        factor = float(scale)
    else:
        raise InvalidOptionError(
            subject, f"scale={scale!r} has no meaning", expected="True, False or a positive factor", got=repr(scale)
        )
    steps = _native.affine(channels, divisor, factor, *_normalisation(subject, channels, mean, std))
    if row.name in _FLOATS:
        return Recipe(row, steps)
    if row is own and not divisor and factor == 1 and mean is None and std is None:
        return Recipe(row, None)
    hint = f"scale=False without mean and std moves {own.name} pixels as they are" if row is own else None
    fact = f"dtype={row.name} cannot hold what becomes of {own.name} pixels"
    raise UnsupportedDtypeError(subject, fact, expected="float32, float16 or bfloat16", got=row.name, hint=hint)


@lru_cache(maxsize=256, typed=True)
def _way_back(subject: str, channels: int, dtype: Any, mean: Any, std: Any) -> Any:
    row = BY_NAME["uint8"] if dtype is None else resolve(dtype, subject=subject)
    if row.name not in ("uint8", "uint16", "float32"):
        fact = f"dtype={row.name} is no dtype of pixels to show"
        raise UnsupportedDtypeError(subject, fact, expected="uint8, uint16 or float32", got=row.name)
    return Recipe(row, _native.affine(channels, 0.0, 1.0, *_normalisation(subject, channels, mean, std)))


def _normalisation(subject: str, channels: int, mean: Any, std: Any) -> tuple[list[float], list[float]]:
    """A mean and a std for each channel, in float32; empty where there is none."""
    lists = []
    for option, value in (("mean", mean), ("std", std)):
        numbers = [] if value is None else [value] * channels if isinstance(value, float) else list(value)
        if value is not None and len(numbers) != channels:
            fact = f"{option}= has another length than the picture has channels"
            hint = f"one number, or one for each of the {channels} channels"
            raise ShapeMismatchError(subject, fact, expected=channels, got=len(numbers), hint=hint)
        with np.errstate(over="ignore"):
            lists.append([float(np.float32(one)) for one in numbers])
    if not all(map(math.isfinite, lists[0])):
        raise InvalidOptionError(
            subject, f"mean={mean!r} cannot be subtracted", expected="finite numbers", got=repr(mean)
        )
    if any(not math.isfinite(one) or one == 0 for one in lists[1]):
        raise InvalidOptionError(subject, f"std={std!r} cannot be divided by", expected="finite, not 0", got=repr(std))
    return lists[0], lists[1]


def is_channels_last(memory_format: Any, subject: str) -> bool:
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise InvalidOptionError(
            subject,
            f"memory_format={memory_format!r} has no meaning",
            expected="torch.contiguous_format or torch.channels_last",
            got=repr(memory_format),
        )
    return memory_format is torch.channels_last


# --- writing it


def _memory_of(out: torch.Tensor, is_interleaved: bool) -> tuple[torch.Tensor, AnyArray] | None:
    """A tensor with the array to fill; ``None`` where its memory is not dense in the order that kernels fill."""
    seen = out.movedim(-3, -1) if is_interleaved else out
    if out.device.type != "cpu" or not seen.is_contiguous():
        return None
    return out, _bridge.alias(seen, writable=True)


def _moved(whole: AnyArray, shape: tuple[int, ...], own: DType, mean: Any, std: Any, dtype: Any) -> AnyArray:
    """Integers keep their dtype and values."""
    subject = "image_to_numpy"
    if mean is not None or std is not None:
        fact = f"mean= and std= mean nothing for {own.name}, whose values are kept"
        raise InvalidOptionError(subject, fact, hint="leave them away, or give the floats they belong to")
    if dtype is not None and resolve(dtype, subject=subject) is not own:
        fact = f"dtype= cannot change {own.name}, whose values are kept"
        raise UnsupportedDtypeError(subject, fact, expected=own.name, got=dtype, hint="array.astype(dtype)")
    pixels = np.empty(whole.shape, own.numpy)
    copy_into(pixels, whole, casting="no", subject=subject, what=own)
    return pixels.reshape(shape)
