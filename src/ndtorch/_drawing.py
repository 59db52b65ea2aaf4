"""Plans as text, and as a picture of the memory layout for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ._plan import Plan

_CELLS = 12  # at most this many elements are drawn along an axis of no or negative stride, twice as many in all
_MOST = 4096  # elements that are looked at for those


def plan_text(plan: Plan) -> str:
    """A few lines: source and result, what happens to the bytes, the reason, notes."""
    lines = [_headline(plan)]
    lines += [f"  {label}: {value}" for label, value in _facts(plan)]
    for path, leaf in plan.leaves.items():
        first, *rest = plan_text(leaf).splitlines()
        lines += [f"  {path}: {first}", *(f"  {line}" for line in rest)]
    return "\n".join(lines)


def plan_summary(plan: Plan) -> str:
    """One line: source and result, and what happens to the bytes."""
    return f"{_headline(plan)}, {memory_word(plan)}"


def _headline(plan: Plan) -> str:
    if plan.error is not None or plan.leaves:
        return str(plan.source)
    sizes = ",".join(map(str, plan.shape))
    return f"{plan.source} -> {plan.dtype}[{sizes}]({plan.options.to})"


def memory_word(plan: Plan) -> str:
    """One phrase for what happens to the bytes."""
    if plan.error is not None:
        return "error"
    if plan.shares:
        return "shared"
    if plan.action == "map":
        return "private mapping, nothing copied until written"
    return f"copied: {plan.nbytes_copied:,} bytes"


def _facts(plan: Plan) -> list[tuple[str, str]]:
    word = memory_word(plan)
    label, _, value = word.partition(": ")
    if plan.error is not None:
        facts = [("raises", f"{type(plan.error).__name__}: {plan.error}")]
    elif value:
        facts = [(label, value)]
    else:
        facts = [("memory", label)]
    if plan.reason and plan.error is None:
        facts.append(("reason", plan.reason))
    return facts + [("note", note) for note in plan.notes]


# --- HTML

_STYLE = """
.ndtorch-plan{font:13px/1.45 system-ui,sans-serif;color:#1b1f24;background:#fff;border:1px solid #d0d7de;
border-radius:6px;padding:12px 14px;margin:4px 0;max-width:760px}
.ndtorch-plan h4{font:600 13px/1.4 ui-monospace,monospace;margin:0 0 6px}
.ndtorch-plan dl{display:grid;grid-template-columns:max-content 1fr;gap:1px 12px;margin:0 0 8px}
.ndtorch-plan dt{color:#59636e}.ndtorch-plan dd{margin:0}
.ndtorch-plan svg{display:block;max-width:100%;height:auto}
.ndtorch-plan details{margin:4px 0 0}.ndtorch-plan summary{cursor:pointer;font:12px ui-monospace,monospace}
.ndtorch-plan text{font:11px ui-monospace,monospace;fill:#1b1f24}
.ndtorch-plan .quiet{fill:#59636e}.ndtorch-plan .line{stroke:#8c959f;fill:none}
.ndtorch-plan .shared{fill:#b4e3c0;stroke:#2c7a43}.ndtorch-plan .copied{fill:#fbd9a5;stroke:#9a6700}
.ndtorch-plan .mapped{fill:#c5dcfa;stroke:#1f5fae}.ndtorch-plan .gap{fill:#f1f3f5;stroke:#d0d7de}
@media(prefers-color-scheme:dark){.ndtorch-plan{color:#e6edf3;background:#161b22;border-color:#3d444d}
.ndtorch-plan dt{color:#9198a1}.ndtorch-plan text{fill:#e6edf3}.ndtorch-plan .quiet{fill:#9198a1}
.ndtorch-plan .shared{fill:#1f5130;stroke:#56d364}.ndtorch-plan .copied{fill:#5c4213;stroke:#e3b341}
.ndtorch-plan .mapped{fill:#1c3d6b;stroke:#79b8ff}.ndtorch-plan .gap{fill:#21262d;stroke:#3d444d}}
""".replace("\n", "")


def plan_html(plan: Plan) -> str:
    """A self-contained block: the facts, and a drawing of where the elements lie in memory."""
    return f"<style>{_STYLE}</style>{_block(plan)}"


def _block(plan: Plan) -> str:
    facts = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in _facts(plan))
    leaves = "".join(
        f"<details open=''><summary>{escape(path)}: {escape(memory_word(leaf))}</summary>{_block(leaf)}</details>"
        for path, leaf in plan.leaves.items()
    )
    drawing = "" if plan.leaves or plan.error is not None else _layout_svg(plan)
    return f'<div class="ndtorch-plan"><h4>{escape(_headline(plan))}</h4><dl>{facts}</dl>{drawing}{leaves}</div>'


def _layout_svg(plan: Plan) -> str:
    spec = plan.source
    kind: Kind = "shared" if plan.shares else "mapped" if plan.action == "map" else "copied"
    result = f"{plan.dtype}[{','.join(map(str, plan.shape))}]({plan.options.to})"
    legend = f"one pass into fresh row-major memory, {plan.nbytes_copied:,} bytes" if kind == "copied" else ""
    return layout_svg(Layout(str(spec), spec.view_shape, spec.strides, spec.itemsize, kind, result, legend))


Kind = Literal["shared", "mapped", "copied"]

_LEGENDS = {
    "shared": "the same bytes: a write on either side is seen on the other",
    "mapped": "a private mapping of the same file: pages are copied when they are written",
    "copied": "one pass into fresh row-major memory",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the elements of a source lie, and what becomes of them.

    Attributes:
        source: The source in words, such as ``f64[3,4](numpy)``.
        shape: Its sizes.
        strides: Bytes from element to element, one per size.
        itemsize: Bytes of an element.
        kind: What happens to the bytes.
        result: The result in words.
        legend: What happens to the bytes, in words; empty for the usual ones.
    """

    source: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    kind: Kind
    result: str
    legend: str = ""


def layout_svg(layout: Layout) -> str:
    """Draw the source's elements in the order of their addresses, and the result's below; empty if there are none."""
    kind = layout.kind
    width, cell, top = 700, 26, 34
    cells, is_cut = _cells(layout)
    if not cells:
        return ""
    rows = [
        f'<text x="0" y="14">{escape(layout.source)}</text>',
        f'<text class="quiet" x="0" y="28">strides {escape(str(layout.strides))} bytes, lowest address left</text>',
        _strip(cells, 0, top, cell, kind if kind == "shared" else "gap"),
    ]
    if is_cut:
        rows.append(f'<text class="quiet" x="{len(cells) * cell + 6}" y="{top + 18}">and so on</text>')
    below = top + cell + 34
    order = sorted(label for label in cells if label >= 0)
    rows.append(_arrow(top + cell + 4, below - 6, kind))
    legend = layout.legend or _LEGENDS[kind]
    rows.append(f'<text class="quiet" x="24" y="{top + cell + 22}">{escape(legend)}</text>')
    rows.append(_strip(cells if kind != "copied" else order, 0, below, cell, kind))
    rows.append(f'<text x="0" y="{below + cell + 16}">{escape(layout.result)}</text>')
    height = below + cell + 24
    label = escape(f"memory layout: {legend}")
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{label}">{"".join(rows)}</svg>'


def _cells(layout: Layout) -> tuple[list[int], bool]:
    """Positions by address, lowest first: the row-major number of the element there, or -1 for a gap."""
    item, full_shape = layout.itemsize, layout.shape
    if not item or 0 in full_shape or len(full_shape) != len(layout.strides):
        return [], False
    window = 2 * _CELLS * item
    steps = zip(full_shape, layout.strides, strict=True)
    shape = [min(n, window // stride + 2 if stride > 0 else _CELLS) for n, stride in steps]
    place: dict[int, int] = {}
    for number in range(min(_product(shape), _MOST)):
        index, rest = [], number
        for n in reversed(shape):
            rest, i = divmod(rest, n)
            index.append(i)
        index.reverse()
        address = sum(i * s for i, s in zip(index, layout.strides, strict=True))
        full = 0
        for i, n in zip(index, full_shape, strict=True):
            full = full * n + i
        place.setdefault(address, full)
    low = min(place)
    slots = [place.get(low + k * item, -1) for k in range(min((max(place) - low) // item + 1, 2 * _CELLS))]
    distinct = _product([n for n, stride in zip(full_shape, layout.strides, strict=True) if stride or n < 2])
    return slots, len(slots) < distinct or shape != list(full_shape)


def _product(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _strip(cells: list[int], x: int, y: int, cell: int, kind: str) -> str:
    parts = []
    for position, label in enumerate(cells):
        left = x + position * cell + 0.5
        style = "gap" if label < 0 else kind
        parts.append(f'<rect class="{style}" x="{left}" y="{y}.5" width="{cell - 2}" height="{cell - 2}" rx="2"/>')
        if label >= 0:
            parts.append(f'<text x="{left + cell / 2 - 1}" y="{y + 17}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _arrow(top: int, bottom: int, kind: str) -> str:
    return f'<path class="line" d="M12 {top}V{bottom}m-4 -5l4 5l4 -5"/>'
