"""What is wanted of which leaf: the options of a loader, checked once and asked for by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .._dtypes import DType, at_matching_width
from .._errors import InvalidOptionError
from .._options import resolve_float
from .parts import SUBJECT, SourceOptions


class ImageWish(NamedTuple):
    """The options of `image_to_torch` for a leaf.

    Attributes:
        is_named: Whether the caller names the leaf, so that it has to be pictures.
    """

    is_named: bool = False
    dtype: Any = None
    scale: Any = True
    mean: Any = None
    std: Any = None
    memory_format: Any = torch.contiguous_format

    def words(self) -> dict[str, Any]:
        """The options, as `image_to_torch` takes them."""
        return {word: getattr(self, word) for word in _IMAGE_WORDS}


_IMAGE_WORDS = ImageWish._fields[1:]


class Wishes:
    """The options of a loader, asked for leaf by leaf.

    Attributes:
        float_row: What floating leaves become, if anything.
        leaves: What has been found so far: paths, and what is there.
        datasets: Where datasets are, whose leaves nobody knows before there is a batch.
    """

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self.float_row = resolve_float(SUBJECT, options.float_dtype)
        self.leaves: dict[str, str] = {}
        self.datasets: list[str] = []
        self._image: ImageWish | None = None
        self._images: dict[Any, ImageWish | None] = {}
        self._has_picture = False
        self._picture_hint: str | None = None
        self._paddings: dict[Any, Any] = {}
        self._has_padding = False
        if _is_by_leaf(options.image):
            self._images = {key: _image_wish(value, key) for key, value in options.image.items()}
        else:
            self._image = _image_wish(options.image)
        if isinstance(options.pad_value, Mapping):
            self._paddings = dict(options.pad_value)

    def row_of(self, own: DType) -> DType:
        """The dtype of results, given that of the leaf."""
        if self.float_row is None or own.kind not in ("float", "complex"):
            return own
        return at_matching_width(own.kind, self.float_row)

    def casts(self) -> dict[str, Any]:
        """The options that `to_torch` has as well."""
        return {} if self.float_row is None else {"float_dtype": self.float_row.torch}

    @property
    def has_image(self) -> bool:
        """Whether any leaf is to become planes."""
        return self.is_for_all or bool(self._images)

    @property
    def is_for_all(self) -> bool:
        """Whether all that looks like pictures is to become planes."""
        return self._image is not None

    def image_at(self, path: str) -> ImageWish | None:
        """What pictures at a path become; ``None`` where they stay as they are."""
        key = _key_of(path, self._images)
        return self._image if key is None else self._images[key]

    def is_picture(self) -> None:
        """Note that ``image=`` has found something."""
        self._has_picture = True

    def is_no_picture(self, hint: str | None) -> None:
        """Note what would make pictures of a leaf that ``image=`` was not for."""
        self._picture_hint = self._picture_hint or hint

    def padding_at(self, path: str) -> Any:
        """What fills up ragged rows at a path; ``None`` where they stay ragged."""
        key = _key_of(path, self._paddings)
        value = self._paddings[key] if key is not None else None if self._paddings else self.options.pad_value
        self._has_padding |= value is not None
        return value

    def check(self, paths: Sequence[str], *, is_empty: bool) -> None:
        """Refuse an option that none of these leaves has a use for; what has no rows shows no use.

        Raises:
            InvalidOptionError: It names one that is not there, or asks for what none of them is.
        """
        for option, named in (("image", self._images), ("pad_value", self._paddings)):
            for key in named:
                if not any(_is_path_of(key, path) for path in paths) and not any(
                    _is_below(key, p) for p in self.datasets
                ):
                    raise _unknown(option, key, paths, "the data")
        if is_empty or self.datasets:
            return
        if self._image is not None and not self._has_picture:
            expected = "rows of uint8 or uint16, HW or HWC with 1, 3 or 4 channels"
            raise self._useless("image= has no pictures to apply to", expected, self._picture_hint)
        if self.options.pad_value is not None and not self._has_padding:
            expected = "a list of arrays, or ragged rows"
            raise self._useless("pad_value= has nothing to fill up", expected, "leave it away")
        if self.options.collate_fn is not None:
            raise self._useless("collate_fn= has no samples to put together", "a Dataset or a list", "leave it away")

    def check_batch(self, place: str, paths: Sequence[str]) -> None:
        """Refuse an option that names a leaf which the batches of the dataset at a place have not.

        Raises:
            InvalidOptionError: It does.
        """
        for key in self._images:
            if _is_below(key, place) and not any(_is_path_of(key, place + path) for path in paths):
                raise _unknown("image", key, [place + path for path in paths], "a batch")

    def _useless(self, fact: str, expected: str, hint: str | None) -> InvalidOptionError:
        leaves = ", ".join(f"data{path} {text}" for path, text in self.leaves.items())
        return InvalidOptionError(SUBJECT, fact, expected=expected, got=leaves or "nothing", hint=hint)


def _is_by_leaf(image: Any) -> bool:
    return isinstance(image, Mapping) and bool(image) and not any(key in _IMAGE_WORDS for key in image)


def _image_wish(image: Any, leaf: Any = None) -> ImageWish | None:
    is_named = leaf is not None
    if image is None or image is False:
        return None
    if image is True:
        return ImageWish(is_named)
    if not isinstance(image, Mapping) and is_named:
        fact = f"image= has no option {leaf!r}"
        expected = f"some of {', '.join(_IMAGE_WORDS)}, or leaves with True or a dict of these for each"
        raise InvalidOptionError(SUBJECT, fact, expected=expected, got=repr(leaf))
    if not isinstance(image, Mapping):
        fact = f"image={image!r} has no meaning"
        raise InvalidOptionError(
            SUBJECT, fact, expected="True or a dict of " + ", ".join(_IMAGE_WORDS), got=repr(image)
        )
    for key in image:
        if key not in _IMAGE_WORDS:
            fact = f"image= has no option {key!r}"
            raise InvalidOptionError(SUBJECT, fact, expected="some of " + ", ".join(_IMAGE_WORDS), got=repr(key))
    return ImageWish(is_named, **image)


def name_of(path: str) -> str:
    """How ``image=`` names the leaf at a path, as it is written: by the last step where that is the only one."""
    return path[1:-1] if path.startswith("[") and path.count("[") == 1 else repr(path)


def _key_of(path: str, keys: Mapping[Any, Any]) -> Any:
    return next((key for key in keys if _is_path_of(key, path)), None)


def _is_below(key: Any, place: str) -> bool:
    """Whether a key can mean nothing but what is in the dataset at a place."""
    return not place or (isinstance(key, str) and key.startswith(place))


def _unknown(option: str, key: Any, paths: Sequence[str], where: str) -> InvalidOptionError:
    fact = f"{option}= names {key!r}, which {where} has not"
    expected = "one of " + ", ".join(paths) if any(paths) else "an option alone: the data is one leaf"
    return InvalidOptionError(SUBJECT, fact, expected=expected, got=repr(key))


def _is_path_of(key: Any, path: str) -> bool:
    """Whether a key means the leaf at a path: it is spelled as the path is, or as the key or field there."""
    return path in (key, f"[{key!r}]", f".{key}")
