"""Pictures, read through Pillow: ``.png``, ``.jpg`` and ``.tif``, each one array as Pillow has its pixels.

===========================  ==============================================================================
mode                         array
===========================  ==============================================================================
``1``                        bool (H, W)
``L``, ``P``                 uint8 (H, W); of ``P`` the indices into the palette, as `to_numpy` of the picture
``I;16``, ``I``, ``F``       uint16, int32 (uint32 where a TIFF says so), float32 (H, W)
``LA``, ``RGB``, ``RGBA``    uint8 (H, W, 2), (H, W, 3), (H, W, 4)
``CMYK``, ``YCbCr``, ``LAB`` uint8 (H, W, channels), no colours converted
===========================  ==============================================================================

A TIFF of several pages that agree is one array (N, ...); of pages that do not, arrays ``name/0``, ``name/1`` ....
An animated PNG is its first picture, a JPEG with a preview its first. The EXIF orientation is not applied: rows are
rows of the file. Sixteen bits for each of several channels, of which Pillow keeps eight, are refused.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .._errors import FormatError, MissingDependencyError, NdtorchError, UnsupportedDtypeError
from .._turns import own_filters
from .arrays import AnyArray, FileArray, Packed, Unreadable
from .storage import Storage

_FORMATS = ("PNG", "JPEG", "TIFF")
_STRIP = 1 << 18  # bytes that are on their way at a time, so that they stay in the cache
_MAX_PAGES = 100_000
_MAX_GROWTH = 1100  # bytes that one byte of a file may become where Pillow's own limit says nothing; deflate has 1032
_MAX_UNQUESTIONED = 256 << 20  # bytes of several pages, however small the file
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # tags of a TIFF

Form = tuple[np.dtype[Any], tuple[int, ...]]
"""Dtype and shape of the pixels of a picture."""


def read_headers(storage: Storage, name: str) -> list[FileArray]:
    """Read the header, or those of all pages; no pixel is decoded."""
    where = repr(storage.path)
    with _opened(storage, where) as picture, _bombs_refused():
        lossy = _why_lossy(picture)
        forms = (
            _forms_of_pages(picture, where, storage.size)
            if picture.format == "TIFF" and not lossy
            else [_form(picture)]
        )
    if lossy:
        hint = "tifffile.imread(path) or cv2.imread(path, -1) gives all of them"
        error = UnsupportedDtypeError("read", f"{where} has {lossy}", hint=hint, dtype="uint16")
        return [FileArray(name, where, *forms[0], Unreadable(error), dtype_name="uint16")]
    _check_size(forms, storage, where)
    if len(forms) > 1 and len(set(forms)) == 1:
        dtype, shape = forms[0]
        return [_array(storage, name, where, (dtype, (len(forms), *shape)), None)]
    if len(forms) > 1:
        return [_array(storage, f"{name}/{n}", f"{where} page {n}", form, n) for n, form in enumerate(forms)]
    return [_array(storage, name, where, forms[0], 0)]


def _array(storage: Storage, name: str, where: str, form: Form, page: int | None) -> FileArray:
    """The array of one page, or with ``None`` of all of them."""
    read = partial(_read_pages, storage, where, form) if page is None else partial(_read, storage, where, form, page)
    fill = None if page is None else partial(_fill_page, storage, where, form, page)
    rows = 1 if page is None else max(form[1][0], 1)
    return FileArray(name, where, *form, Packed(read, rows, "encoded as a picture", fill), compression="picture")


def _check_size(forms: list[Form], storage: Storage, where: str) -> None:
    """Pillow looks at one page at a time."""
    nbytes = sum(math.prod(shape) * dtype.itemsize for dtype, shape in forms)
    if len(forms) > 1 and nbytes > max(storage.size * _MAX_GROWTH, _MAX_UNQUESTIONED):
        expected = f"at most {_MAX_GROWTH} bytes for each of its {storage.size}"
        raise FormatError("read", f"{where} claims absurdly many pixels", expected=expected, got=nbytes)


# --- pixels of an open picture


def form_of(picture: Any) -> Form:
    """Dtype and shape of the pixels of a picture of Pillow."""
    dtype, bands = pixel_of(picture.mode)
    size = (picture.height, picture.width)
    return dtype, size if bands == 1 else (*size, bands)


def pixel_of(mode: str) -> tuple[np.dtype[Any], int]:
    """Dtype of a channel and how many channels there are."""
    found = sys.modules["PIL.ImageMode"].getmode(mode)
    return np.dtype(found.typestr), len(found.bands)


def fill_pixels(picture: Any, array: AnyArray) -> None:
    """Decode a picture if need be, then copy strip by strip: all of it as bytes at once takes five times as long.

    Raises:
        ValueError: Decoding has shown that the header had another size or mode.
    """
    picture.load()
    if form_of(picture) != (array.dtype, array.shape):
        raise ValueError(f"its header and its pixels disagree: they are {picture.mode} of size {picture.size}")
    if not array.size:
        return
    width, is_bits = picture.width, picture.mode == "1"
    rows = max(_STRIP // array[0].nbytes, 1)
    for top in range(0, picture.height, rows):
        strip = array[top : top + rows]
        pixels = picture.crop((0, top, width, top + len(strip))).tobytes("raw", "L" if is_bits else picture.mode)
        values = np.frombuffer(pixels, np.uint8 if is_bits else array.dtype).reshape(strip.shape)
        strip[...] = values != 0 if is_bits else values


# --- pictures in files


@contextmanager
def _opened(storage: Storage, where: str) -> Iterator[Any]:
    """Open a picture; whatever Pillow says of one that is damaged is a `FormatError`."""
    try:
        import PIL.Image
    except ImportError:
        hint = "pip install pillow"
        raise MissingDependencyError("read", f"{where} is a picture and Pillow is not installed", hint=hint) from None
    try:
        with _bombs_refused():
            picture = PIL.Image.open(storage.open_binary(), formats=_FORMATS)
        with picture:
            yield picture
    except NdtorchError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        reason = str(error).partition(",")[0]
        hint = "where you trust it, PIL.Image.MAX_IMAGE_PIXELS = None lifts the limit"
        raise FormatError("read", f"{where} could be a decompression bomb: {reason}", hint=hint) from None
    except PIL.UnidentifiedImageError:
        raise FormatError("read", f"{where} is not a picture that Pillow knows as PNG, JPEG or TIFF") from None
    except Exception as error:  # its decoders raise whatever they stumble over
        raise FormatError("read", f"{where} is a damaged picture: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0][:200]
    return text if text and isinstance(error, OSError | ValueError | SyntaxError) else f"{type(error).__name__} {text}"


@contextmanager
def _bombs_refused() -> Iterator[None]:
    """Pillow warns of what is large, and of what is odd in metadata; only the former matters here."""
    with own_filters():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", sys.modules["PIL.Image"].DecompressionBombWarning)
        yield


def _form(picture: Any) -> Form:
    """Dtype and shape, where 32 bits of a TIFF may be numbers without sign: Pillow has no mode for them."""
    dtype, shape = form_of(picture)
    tags = getattr(picture, "tag_v2", None) or {}
    is_unsigned = tags.get(_BITS_PER_SAMPLE) == (32,) and tuple(tags.get(_SAMPLE_FORMAT, (1,))) == (1,)
    return np.dtype(np.uint32) if dtype == np.int32 and is_unsigned else dtype, shape


def _why_lossy(picture: Any) -> str:
    """Why Pillow would change the values, in words that finish "it has ..."; empty where it does not."""
    args = [tile[3] for tile in picture.tile]
    raw = next((arg if isinstance(arg, str) else arg[0] for arg in args if arg), "")
    if isinstance(raw, str) and ";16" in raw and not picture.mode.startswith("I"):
        return "16 bits for each channel, of which Pillow keeps 8"
    tags = getattr(picture, "tag_v2", None) or {}
    bits = tags.get(_BITS_PER_SAMPLE, ())
    if len(bits) > 1 and max(bits) > 8:
        return f"{max(bits)} bits for each channel, of which Pillow keeps 8"
    return ""


def _forms_of_pages(picture: Any, where: str, storage_size: int) -> list[Form]:
    forms = []
    while True:
        forms.append(_form(picture))
        if len(forms) > _MAX_PAGES:
            raise FormatError("read", f"{where} has absurdly many pages", expected=f"at most {_MAX_PAGES}", got="more")
        try:
            picture.seek(len(forms))
        except EOFError:
            # Where the file ends within a directory, Pillow takes that one for the last.
            tags = picture.tag_v2
            if tags.next and tags.next + 6 + 12 * len(tags) > storage_size:
                raise FormatError("read", f"{where} ends before its page {len(forms)}") from None
            return forms


def _decode(picture: Any, form: Form, page: int, array: AnyArray, where: str) -> None:
    with _bombs_refused():
        if page != picture.tell():
            picture.seek(page)
        found = _form(picture)
    if found != form:
        raise FormatError("read", f"{where} has changed since it was opened", expected=form, got=found)
    fill_pixels(picture, array.view(np.int32) if array.dtype == np.uint32 else array)


def _fill_page(storage: Storage, where: str, form: Form, page: int, array: AnyArray) -> None:
    with _opened(storage, where) as picture:
        _decode(picture, form, page, array, where)


def _read(storage: Storage, where: str, form: Form, page: int, key: tuple[slice, ...]) -> AnyArray:
    array = np.empty(form[1], form[0])
    _fill_page(storage, where, form, page, array)
    return array[key]


def _read_pages(storage: Storage, where: str, form: Form, key: tuple[slice, ...]) -> AnyArray:
    """Decode the pages that are asked for, one after the other."""
    dtype, (_, *shape) = form
    pages, *inner = key
    result = np.empty([each.stop - each.start for each in key], dtype)
    page = np.empty(shape, dtype)
    with _opened(storage, where) as picture:
        for target, number in zip(result, range(pages.start, pages.stop), strict=True):
            _decode(picture, (dtype, tuple(shape)), number, page, where)
            target[...] = page[tuple(inner)]
    return result
