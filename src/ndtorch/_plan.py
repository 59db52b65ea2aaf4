"""Plan: decide, before a byte moves, whether memory is shared, and say why when it is not.

`why_copy` is the one place that decides. Its text is the plan's reason, the error under ``copy=False``, the line that
`explain` prints and the cell of the README's table, so they cannot disagree. ``""`` means that memory is shared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal

from ._casting import kind_of
from ._drawing import plan_html, plan_summary, plan_text
from ._dtypes import BY_NAME
from ._errors import CopyRequiredError, NdtorchError
from ._options import Options
from ._refusals import truncated, why_not_assembled, why_not_filled, why_refused
from ._spec import Spec
from ._targets import is_same_dtype, is_text, result_type, target_dtype
from .foreign.sparse import INDEX_PARTS

Action = Literal[
    "share",  # the same memory under the other library's type
    "copy",  # one pass into fresh memory: row-major, native byte order, cast on the way
    "copy distinct",  # the same for the elements that have memory of their own, then expanded
    "map",  # a private copy-on-write mapping of the file behind a read-only memory map
    "parse",  # read Python objects into numbers first
    "read",  # have a foreign object read into fresh memory first
    "fill",  # copy the data of a masked array and put NaN where the mask is True
    "parts",  # field by field, column by column, data and mask, values and indices
    "refuse",  # raise `error`
]

READ_ONLY = "it is read-only"
MOVABLE = "share_memory_() or a queue moves the tensor and leaves this array dangling (pytorch#51849)"


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What a conversion would do and why. Made by `explain`; carried out by `to_torch` and `to_numpy`.

    Attributes:
        source: The described source.
        options: The options of the call.
        reason: Why bytes are copied or mapped; ``""`` exactly when `shares`.
        action: What is done with this leaf.
        dtype: Dtype of the result, by name.
        shape: Sizes of the result.
        nbytes_copied: Bytes written to fresh memory; 0 for a private mapping, which copies when written.
        notes: What else the caller may want to know.
        error: What the call would raise, or ``None``.
        leaves: Plans of the leaves of a structure, by path such as ``['image'][3]``.

    >>> import numpy as np, ndtorch as nd
    >>> plan = nd.explain(np.zeros((2, 3), dtype=">f4"))
    >>> plan.shares, plan.nbytes_copied, plan.reason
    (False, 24, 'its bytes are in the other order')
    """

    source: Spec
    options: Options
    reason: str
    action: Action
    dtype: str = ""
    shape: tuple[int, ...] = ()
    nbytes_copied: int = 0
    notes: tuple[str, ...] = ()
    error: NdtorchError | None = None
    leaves: Mapping[str, Plan] = field(default_factory=dict)

    @property
    def shares(self) -> bool:
        """Whether the result is the source's own memory; for a structure, of every leaf."""
        return not self.reason

    def __str__(self) -> str:
        return plan_text(self)

    def __repr__(self) -> str:
        return f"<plan: {plan_summary(self)}>"

    def _repr_html_(self) -> str:
        return plan_html(self)


def why_copy(spec: Spec, options: Options) -> str:
    """Say why a conversion cannot share memory; ``""`` means that it can.

    The first reason that applies is given; an empty source satisfies every wish.

    >>> import numpy as np
    >>> from ndtorch._spec import describe
    >>> why_copy(describe(np.zeros(3)), Options(to="torch"))
    ''
    >>> why_copy(describe(np.zeros(3)[::-1]), Options(to="torch"))
    'axis 0 has a negative stride (-8 bytes)'
    """
    if spec.form == "python":
        return f"a Python {spec.text} has no array memory to share"
    if spec.form == "object" and options.to == "torch":
        return "its elements are Python objects"
    if spec.size == 0:
        return ""
    if spec.unread and not (spec.form == "object" and options.to == "numpy"):
        return spec.unread
    if spec.is_scalar:
        return "a NumPy scalar has no array memory to share"
    reason = _why_asked(spec, options) or _why_values_differ(spec, options)
    if reason or options.to == "numpy":
        return reason
    if spec.library == "numpy":
        reason = _why_layout(spec)
    return reason or (_why_read_only(spec, options) if spec.library == "numpy" or spec.origin else "")


def _why_asked(spec: Spec, options: Options) -> str:
    """The caller's own words: a copy, a device, a dtype."""
    if options.copy:
        return "copy=True was asked for"
    if options.to == "numpy" and spec.device != "cpu":
        return f"its memory is on {spec.device}, where NumPy cannot reach"
    if options.device is not None and not _same_device(options.device, spec.device):
        return f"device={options.device!r} was asked for and it is on {spec.device}"
    target = target_dtype(spec, options)
    if target is not None and not is_same_dtype(spec, target, options):
        name = target.name if target.name != spec.text else str(target)
        return f"{name} was asked for and it is {spec.text}"
    if options.to == "numpy" and is_text(target) and spec.library == "torch" and spec.strides[-1] != spec.itemsize:
        return "its characters do not lie side by side"
    return ""


def _same_device(wanted: str, actual: str) -> bool:
    """``cuda`` is any CUDA device, ``cuda:1`` is that one."""
    return wanted == actual or (":" not in wanted and wanted == actual.split(":")[0])


def _why_values_differ(spec: Spec, options: Options) -> str:
    """Memory whose bytes do not yet mean what the source means."""
    if spec.lazy and options.to == "numpy":
        return f"its {spec.lazy} bit is set: memory holds other values than the tensor"
    return ""


def _why_layout(spec: Spec) -> str:
    """What torch cannot address."""
    if spec.swapped:
        return "its bytes are in the other order"
    for axis, (n, stride) in enumerate(zip(spec.view_shape, spec.strides, strict=True)):
        if n > 1 and stride < 0:
            return f"axis {axis} has a negative stride ({stride} bytes)"
        if n > 1 and stride % spec.itemsize:
            return f"axis {axis} has a stride of {stride} bytes, no multiple of the {spec.itemsize}-byte item"
    return "" if spec.aligned else "it is unaligned: its address is no multiple of what its dtype needs"


def _why_read_only(spec: Spec, options: Options) -> str:
    return READ_ONLY if spec.readonly and options.readonly != "share" else ""


def plan(spec: Spec, options: Options) -> Plan:
    """Decide what happens to one described source."""
    if spec.form == "masked" and options.to == "torch" and options.masked == "nan":
        return _plan_fill(spec, options)
    has_parts = bool(spec.parts) or spec.form == "table"  # which may have no columns
    if has_parts and spec.library != options.to and _takes_parts(spec, options):
        return _plan_parts(spec, options)
    error = why_refused(spec, options)
    if error is not None:
        return Plan(spec, options, error.fact, "refuse", error=error)
    reason = why_copy(spec, options)
    is_read = bool(reason) or (spec.readonly and spec.library != options.to)
    if is_read and spec.mapping is not None and spec.mapping.truncated:
        error = truncated(spec, options)
        return Plan(spec, options, error.fact, "refuse", error=error)
    result = _planned(spec, options, reason)
    return result if options.copy is not False else refuse_copy(result)


def _takes_parts(spec: Spec, options: Options) -> bool:
    return spec.form != "masked" or options.masked == "split" or options.to == "numpy" or is_complete(spec)


def is_complete(spec: Spec) -> bool:
    """Whether a column that could miss values misses none. A masked array of NumPy is refused even then."""
    return spec.form == "masked" and spec.library == "foreign" and not spec.nulls


def refuse_copy(planned: Plan) -> Plan:
    """Under ``copy=False``: turn a reason to copy into the error that the call raises."""
    if planned.shares:
        return planned
    options, spec = planned.options, planned.source
    hint = "copy=None copies"
    if planned.reason == READ_ONLY:
        hint += ', readonly="share" insists'
    error = CopyRequiredError(
        options.subject,
        f"cannot share memory with {spec}: {planned.reason}",
        hint=hint,
        reason=planned.reason,
    )
    return replace(planned, action="refuse", nbytes_copied=0, error=error)


def _planned(spec: Spec, options: Options, reason: str) -> Plan:
    dtype, shape = result_type(spec, options)
    itemsize = spec.itemsize if dtype is None else dtype.itemsize
    action: Action = "copy"
    nbytes = math.prod(shape) * itemsize + _mask_nbytes(spec)
    if not reason:
        action, nbytes = "share", 0
    elif spec.unread and reason == spec.unread:
        action = "read"
    elif spec.form == "python" or (
        spec.form == "object" and (options.to == "torch" or target_dtype(spec, options) is not None)
    ):
        action, nbytes = "parse", 0
    elif reason == READ_ONLY and options.readonly == "error":
        return _refuse_read_only(spec, options)
    elif reason == READ_ONLY and spec.mapping is not None and spec.mapping.shared:
        action, nbytes = "map", 0
    elif options.to == "torch" and spec.library == "numpy" and spec.broadcast_axes:
        action, nbytes = "copy distinct", spec.distinct * itemsize
    name = spec.text if dtype is None else dtype.name
    return Plan(spec, options, reason, action, name, shape, nbytes, _notes(spec, options, action, name))


def _mask_nbytes(spec: Spec) -> int:
    mask = spec.parts.get(".mask")
    return 0 if mask is None or mask.own_dtype is None else math.prod(mask.shape) * mask.own_dtype.itemsize


def _refuse_read_only(spec: Spec, options: Options) -> Plan:
    error = CopyRequiredError(
        options.subject,
        f"cannot share memory with {spec}: {READ_ONLY}",
        hint='readonly="copy" copies, readonly="share" insists',
        reason=READ_ONLY,
    )
    return Plan(spec, options, READ_ONLY, "refuse", error=error)


def _notes(spec: Spec, options: Options, action: Action, dtype: str) -> tuple[str, ...]:
    notes = [*spec.notes]
    if options.to == "torch" and dtype in ("uint16", "uint32", "uint64"):
        wider = {"uint16": "int32", "uint32": "int64", "uint64": "float64"}[dtype]
        notes.append(f"torch computes little on {dtype}; dtype={wider!r} is computed on everywhere")
    if action == "map":
        notes.append("a private copy-on-write mapping of the same file: a page is copied when it is written")
    if action == "copy distinct":
        notes.append("broadcast axes stay expanded over one copy of the distinct elements")
    if action == "share" and options.to == "torch" and spec.readonly:
        notes.append("read-only memory shared at your word: writing through the tensor is undefined")
    if action == "share" and options.to == "numpy" and is_protected(spec):
        notes.append(
            "the array is read-only: "
            + ("autograd could not see a write" if spec.requires_grad else "one element stands for many")
        )
    if action == "share" and options.to == "numpy" and spec.movable:
        notes.append(MOVABLE)
    return tuple(notes)


def is_protected(spec: Spec) -> bool:
    """Whether an array over this tensor must be read-only to be sound."""
    return spec.requires_grad or bool(spec.broadcast_axes)


def _plan_parts(spec: Spec, options: Options) -> Plan:
    leaves = {}
    for path, part in spec.parts.items():
        if path == ".mask" and options.masked == "error" and options.to == "torch":
            continue  # it says nothing
        leaves[path] = plan(part, options.without_dtype() if path.startswith(_NOT_VALUES) else options)
    error = why_not_assembled(spec, leaves[".data"].dtype, options) if spec.form == "sparse" else None
    if error is not None:
        return Plan(spec, options, error.fact, "refuse", error=error)
    notes = spec.notes
    if spec.form == "masked" and ".mask" not in spec.parts:
        notes += ("the mask is missing: it comes out all False",)
    return replace(plan_of_leaves(spec, options, leaves), notes=notes)


_NOT_VALUES = (".mask", *INDEX_PARTS)  # a dtype that is asked for is not for these


def _plan_fill(spec: Spec, options: Options) -> Plan:
    """Missing values become NaN (NaT for time), which only copies can hold."""
    data = spec.parts[".data"]
    error = why_not_filled(spec, options)
    if error is not None:
        return Plan(spec, options, error.fact, "refuse", error=error)
    inner = plan_filling(data, options)
    if inner.error is not None:
        return Plan(spec, options, inner.reason, "refuse", error=inner.error)
    reason = "missing values become NaN, in a copy"
    notes = spec.notes
    if data.form == "time":
        notes += ("a missing time is NaT, the least int64, which dtype= and like= of to_numpy give its name",)
    filled = replace(inner, source=spec, options=options, reason=reason, action="fill", notes=notes)
    return filled if options.copy is not False else refuse_copy(filled)


def plan_filling(data: Spec, options: Options) -> Plan:
    """How the values of a masked array get memory of their own, one element for each, in a dtype that has NaN."""
    wanted = replace(options, copy=True, masked="error")
    kind = data.dtype.kind if data.dtype is not None else data.numpy_dtype and kind_of(data.numpy_dtype)
    if data.form != "time" and options.dtype is None and kind not in ("float", "complex"):
        wanted = replace(wanted, dtype=options.float_dtype or BY_NAME["float64"], float_dtype=None)
    inner = plan(data, wanted)
    if inner.action != "copy distinct":  # one element that stands for many could not be missing in one place only
        return inner
    return replace(inner, action="copy", nbytes_copied=math.prod(inner.shape) * BY_NAME[inner.dtype].itemsize)


def plan_of_leaves(spec: Spec, options: Options, leaves: Mapping[str, Plan]) -> Plan:
    """Sum up the plans of a structure's leaves."""
    copied = {path: leaf for path, leaf in leaves.items() if not leaf.shares}
    reason = ""
    if copied:
        path, first = next(iter(copied.items()))
        reason = f"{len(copied)} of {len(leaves)} leaves, the first at {path}: {first.reason}"
    # A copy gets the path, since the leaf keeps its own.
    error = next((copy(leaf.error).at(path) for path, leaf in leaves.items() if leaf.error), None)
    nbytes = sum(leaf.nbytes_copied for leaf in leaves.values())
    return Plan(
        spec,
        options,
        reason,
        "parts",
        shape=spec.shape,
        nbytes_copied=nbytes,
        error=error,
        leaves=leaves,
    )
