"""The page of a report: the template with the table, what its script draws as JSON, and the samples in base64."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from .._drawing import Kind, Layout, layout_svg
from .._inspect import ArrayInfo, Inspection, plain, printable, short, size_text, statistics_cells
from .._statistics import Histogram, Statistics
from ..files.arrays import FileArray, Stored
from ..files.indexing import row_major
from .sample import View

_STATISTICS = ("min", "max", "mean", "std", "NaN", "inf", "zeros")
_COLUMNS = ("array", "dtype", "shape", "order", "bytes", "compression", *_STATISTICS)
_TEXTS = {"array", "dtype", "order", "compression"}
_MAX_TEXT = 120

ASSETS = ("page.html", "page.css", "table.js", "viewer.js", "drawing.js", "page.js")
"""Files of this package that the page is made of; those of the script in their order."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One array in the page.

    Attributes:
        info: What is known of it.
        array: The array itself.
        view: How it is shown at first; ``None`` where it cannot be read.
        histogram: Of its finite values.
        kind: Type of the sample's elements, such as ``f4``, or ``text``.
        data: The sample.
        counts: Its sizes.
        steps: From one index of the sample to the next, by axis.
    """

    info: ArrayInfo
    array: FileArray
    view: View | None = None
    histogram: Histogram | None = None
    kind: str = ""
    data: bytes | list[str] = b""
    counts: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()


def page(headline: str, listed: Inspection, shown: Sequence[Shown], count: int) -> Iterator[str]:
    """Give the page in parts."""
    folder = files(__package__)
    template, style, *scripts = (folder.joinpath(name).read_text("utf-8") for name in ASSETS)
    script = "\n".join(('"use strict";\n{', *scripts, "}"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawings: dict[str, int] = {}
    facts = [_facts(one, drawings) for one in shown]
    columns = _columns(shown)
    more = "" if count == len(shown) else f"The first {len(shown):,} of {count:,} arrays."
    values = {
        "title": escape(printable(_file_name(listed.path))),
        "headline": escape(headline),
        "more": f'<p class="quiet">{more}</p>' if more else "",
        "head": "".join(map(_heading, columns)),
        "rows": "".join(_row(number, one, columns) for number, one in enumerate(shown)),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "style": style,
        "script": script,
        "arrays": _safe_json(facts),
        "drawings": _safe_json(list(drawings)),
    }
    for part in template.split("{{"):
        name, braces, text = part.partition("}}")
        if not braces:
            yield part
        elif name == "samples":
            yield from (_sample(number, one) for number, one in enumerate(shown))
            yield text
        else:
            yield values[name] + text


def _file_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _safe_json(value: Any) -> str:
    """JSON that ends no script element, whatever it says."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sample(number: int, one: Shown) -> str:
    if not one.data:
        return ""
    is_text = isinstance(one.data, list)
    body = _safe_json(one.data) if isinstance(one.data, list) else base64.b64encode(one.data).decode()
    kind = "application/json" if is_text else "text/plain"
    return f'<script type="{kind}" id="sample-{number}">{body}</script>\n'


# --- the table


def _heading(column: str) -> str:
    side = "" if column in _TEXTS | {"shape"} else ' class="number"'
    return f'<th scope="col" aria-sort="none"{side}><button type="button">{column}</button></th>'


def _columns(shown: Sequence[Shown]) -> tuple[str, ...]:
    """The columns in which anything is said."""
    is_packed = any(one.info.compression for one in shown)
    return tuple(column for column in _COLUMNS if column != "compression" or is_packed)


def _row(number: int, one: Shown, columns: Sequence[str]) -> str:
    info = one.info
    name = escape(printable(info.name))
    cells = [f'<th scope="row"><button type="button" class="pick" data-array="{number}">{name}</button></th>']
    cells += [_cell(_dtype(info)), _cell(_sizes(info.shape), math.prod(info.shape)), _cell(info.order)]
    cells.append(_cell(f"{info.nbytes:,}", info.nbytes, number=True))
    if "compression" in columns:
        cells.append(_cell(info.compression))
    if info.error is not None:
        cells.append(f'<td class="error" colspan="{len(_STATISTICS)}">{escape(printable(str(info.error)))}</td>')
    else:
        values = [None] * len(_STATISTICS) if info.stats is None else _values(info.stats)
        texts = statistics_cells(info.stats)
        cells += [_cell(text, plain(value), number=True) for text, value in zip(texts, values, strict=True)]
    return f"<tr>{''.join(cells)}</tr>\n"


def _values(stats: Statistics) -> list[Any]:
    return [stats.min, stats.max, stats.mean, stats.std, stats.nans, stats.infs, stats.zeros]


def _cell(text: str, value: Any = None, *, number: bool = False) -> str:
    key = "" if value is None else f' data-value="{escape(str(value)[:_MAX_TEXT])}"'
    side = ' class="number"' if number else ""
    return f"<td{side}{key}>{escape(printable(text))}</td>"


def _dtype(info: ArrayInfo) -> str:
    return info.dtype + (" big-endian" if info.byteorder == "big" else "")


def _sizes(shape: tuple[int, ...]) -> str:
    return " \u00d7 ".join(f"{n:,}" for n in shape) if shape else "scalar"


# --- one array


def _facts(one: Shown, drawings: dict[str, int]) -> dict[str, Any]:
    info = one.info
    facts: dict[str, Any] = {
        "name": printable(info.name),
        "dtype": _dtype(info),
        "shape": list(info.shape),
        "facts": _fact_list(one),
        "error": "" if info.error is None else printable(str(info.error)),
    }
    if one.view is None:
        return facts
    drawing = _drawing(one)
    if drawing:
        facts["drawing"] = drawings.setdefault(drawing, len(drawings))
    facts |= {"mode": one.view.mode, "layout": one.view.layout, "kind": one.kind}
    facts |= {"counts": list(one.counts), "steps": list(one.steps), "note": _note(one)}
    facts["isComplex"] = one.array.dtype.kind == "c"
    facts["isBool"] = one.array.dtype.kind == "b"
    if one.histogram is not None:
        found = one.histogram
        facts["histogram"] = {
            "low": float(found.low),
            "high": float(found.high),
            "first": short(found.low),
            "last": short(found.high),
            "counts": found.counts,
            "isWhole": found.is_whole,
        }
    return facts


def _fact_list(one: Shown) -> list[tuple[str, str]]:
    info, layout = one.info, one.array.layout
    rows = [("dtype", _dtype(info)), ("shape", _sizes(info.shape)), ("bytes", f"{info.nbytes:,}")]
    if info.nbytes > 999:
        rows[-1] = ("bytes", f"{info.nbytes:,} ({size_text(info.nbytes)})")
    if info.order:
        words = {"C": "C, row by row", "F": "F, column by column"}
        rows.append(("order", words.get(info.order, info.order)))
    if info.compression:
        rows.append(("compression", info.compression))
    if info.offset is not None and isinstance(layout, Stored):
        rows.append(("in the file", f"at byte {info.offset:,}, a multiple of {info.alignment}"))
    if info.stats is not None:
        texts = statistics_cells(info.stats)
        rows += [(title, printable(text)) for title, text in zip(_STATISTICS, texts, strict=True) if text]
    return rows


def _note(one: Shown) -> str:
    """What of the array the page holds."""
    if all(step == 1 for step in one.steps):
        return ""
    axes = [f"every {_ordinal(step)} of axis {axis}" for axis, step in enumerate(one.steps) if step > 1]
    held = _sizes(one.counts)
    return f"The page holds {held} of {_sizes(one.info.shape)} elements: {', '.join(axes)}."


def _ordinal(number: int) -> str:
    teens = number % 100 in (11, 12, 13)
    return f"{number:,}" + ("th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))


def _drawing(one: Shown) -> str:
    array, layout = one.array, one.array.layout
    itemsize = array.dtype.itemsize
    if isinstance(layout, Stored):
        is_mapped = layout.offset % array.dtype.alignment == 0
        strides = layout.strides
    else:
        is_mapped, strides = False, row_major(array.shape, itemsize)
    text = f"{_dtype(one.info)}[{','.join(map(str, array.shape))}]"
    legend = f"read into memory of its own, {array.nbytes:,} bytes" if not is_mapped else ""
    kind: Kind = "mapped" if is_mapped else "copied"
    return layout_svg(Layout(f"{text}(file)", array.shape, strides, itemsize, kind, f"{text}(read)", legend))
