"""Pictures: which rows are some, and what becomes of them as `image_to_torch` has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _native
from .._casting import copy_into
from .._errors import NdtorchError, ShapeMismatchError, UnsupportedDtypeError
from .._images import CHANNELS, PIXELS, Recipe, as_batch, is_channels_last, no_pixels, recipe_of
from .columns import Allocate, AnyArray, Column, Pictures
from .orders import Rows
from .parts import SUBJECT
from .reading import Readers
from .wishes import ImageWish, name_of

_PLAIN = ("uint8", "uint16")  # what is taken for pictures without being named


def looks_like_pictures(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether rows of a dtype and shape are pictures by the look of them."""
    return is_picture_shape(shape) and dtype.newbyteorder("=").name in _PLAIN


def is_picture_shape(shape: Sequence[int]) -> bool:
    """Whether that is the shape of a picture: HW, or HWC with as many channels as pictures have."""
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] in CHANNELS)


def hint_at(path: str, dtype: np.dtype[Any], shape: Sequence[int], pixels: str) -> str | None:
    """What makes pictures of rows that are none by the look of them; ``None`` where nothing is known to.

    Args:
        path: Where in the data they are.
        dtype: Their dtype.
        shape: The shape of one.
        pixels: The call that makes pixels of planes.
    """
    name = dtype.newbyteorder("=").name
    if is_picture_shape(shape):
        wanted = f"image={{{name_of(path)}: True}} takes that leaf for pictures, floating ones too"
        return wanted if path and name in PIXELS else None
    if len(shape) != 3 or shape[0] not in CHANNELS or name not in PIXELS:
        return None
    if name in _PLAIN:
        return f"data{path} looks like planes: {pixels}, a transpose, gives pixels"
    return f"data{path} looks like planes already: leave image= away"


def pictures_of(dtype: np.dtype[Any], shape: tuple[int, ...], wish: ImageWish) -> Pictures | None:
    """What becomes of rows of a dtype and shape; ``None`` where they are not meant.

    Raises:
        ShapeMismatchError: They are named and no pictures; ``mean`` or ``std`` is not one per channel.
        UnsupportedDtypeError: They are named and their numbers are no pixels.
    """
    if not wish.is_named and not looks_like_pictures(dtype, shape):
        return None
    recipe = _recipe_of(dtype, shape, wish)
    return Pictures(recipe.row, recipe.steps, is_interleaved=is_channels_last(wish.memory_format, SUBJECT))


def _recipe_of(dtype: np.dtype[Any], shape: tuple[int, ...], wish: ImageWish) -> Recipe:
    picture = np.broadcast_to(np.empty((), dtype), shape)  # takes no memory and is described in errors
    whole = as_batch(picture, SUBJECT)
    if len(shape) == 4:
        fact = "a row of it is a batch, no picture"
        raise ShapeMismatchError(SUBJECT, fact, expected="HW or HWC", got=shape, hint="array.reshape(-1, *shape)")
    recipe = recipe_of(SUBJECT, dtype, whole.shape[3], wish.dtype, wish.scale, wish.mean, wish.std)
    if recipe is None:
        raise no_pixels(SUBJECT, picture)
    return recipe


class PictureListColumn(Column):
    """Pictures of a list: one tensor where all are of one size, else a list of them.

    Args:
        readers: Give the pixels.
        wish: What becomes of them.

    Raises:
        ShapeMismatchError: One is no picture, or has another number of channels than the first.
        UnsupportedDtypeError: One has another dtype than the first.
    """

    def __init__(self, readers: Readers, wish: ImageWish) -> None:
        self.length, self.nbytes, self.is_slow = len(readers), readers.nbytes, readers.is_slow
        self._readers = readers
        self._is_interleaved = is_channels_last(wish.memory_format, SUBJECT)
        self._recipe = _recipe_of(readers.dtypes[0], readers.shapes[0], wish)
        _check_alike(readers, wish)
        self._is_equal = len(set(readers.shapes)) == 1

    def begin(self) -> None:
        """Look where the pixels are."""
        self._readers.begin()

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Read the pictures, each straight to its planes."""
        numbers = rows.tolist()
        pictures = [as_batch(self._readers.read(row), SUBJECT) for row in numbers]
        if self._is_equal:
            leaf = self._filled(pictures, self._readers.shapes[0], allocate)
        else:
            shapes = [self._readers.shapes[row] for row in numbers]
            leaf = [self._filled([each], shape, allocate)[0] for each, shape in zip(pictures, shapes, strict=True)]
        self._readers.check(numbers)
        return leaf, None

    def _filled(self, pictures: Sequence[AnyArray], size: tuple[int, ...], allocate: Allocate) -> Any:
        height, width, channels = (*size, 1)[:3]
        shape = (height, width, channels) if self._is_interleaved else (channels, height, width)
        tensor, target = allocate((len(pictures), *shape), self._recipe.row)
        for i, picture in enumerate(pictures if target.size else ()):
            place = target[i : i + 1]
            if self._recipe.steps is not None:
                _native.fill_planes(place, picture, self._is_interleaved, self._recipe.steps)
            else:
                planes = picture if self._is_interleaved else picture.transpose(0, 3, 1, 2)
                copy_into(place, planes, casting="no", subject=SUBJECT, what=self._recipe.row)
        return tensor.movedim(-1, -3) if self._is_interleaved else tensor


def _check_alike(readers: Readers, wish: ImageWish) -> None:
    """Refuse pictures that one recipe does not fit; those of another size do."""
    known = {(readers.dtypes[0].newbyteorder("="), _channels(readers.shapes[0]))}
    for i, (dtype, shape) in enumerate(zip(readers.dtypes, readers.shapes, strict=True)):
        if len(shape) in (2, 3) and (dtype.newbyteorder("="), _channels(shape)) in known:
            continue
        try:
            _recipe_of(dtype, shape, wish)
        except NdtorchError as error:
            raise error.at(f"[{i}]") from None
        if dtype.newbyteorder("=") != readers.dtypes[0].newbyteorder("="):
            expected, got = readers.dtypes[0].name, dtype.name
            fact = f"picture {i} is {got} and picture 0 {expected}: white is another number"
            raise UnsupportedDtypeError(SUBJECT, fact, expected=expected, got=got, index=i)
        fact = f"picture {i} has another number of channels than picture 0"
        hint = 'image.convert("RGB") gives all the same channels'
        raise ShapeMismatchError(SUBJECT, fact, expected=readers.shapes[0], got=shape, hint=hint, index=i)


def _channels(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 2 else shape[-1]
