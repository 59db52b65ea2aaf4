"""`ndtorch explain`: a shell over `explain` of everything that `read` opens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import Casting, Dtype, FloatDtype, From, Name, checked_casts, checked_format
from .printing import in_options, print_table

if TYPE_CHECKING:
    from .._plan import Plan


def add_to(app: typer.Typer) -> None:
    """Add the command to a command line."""
    app.command("explain", short_help="Say what a conversion of a file would share or copy.")(explain)


def explain(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, folder, pattern or URL of arrays.")],
    to: Annotated[str, typer.Option(help="The library whose objects are wanted: torch or numpy.")] = "torch",
    source_format: From = None,
    name: Name = None,
    dtype: Dtype = None,
    float_dtype: FloatDtype = None,
    casting: Casting = "same_kind",
) -> None:
    """Say for each array of a file what a conversion would share or copy, and why."""
    source_format = checked_format("--from", source_format)
    casts = checked_casts(dtype, float_dtype, casting)
    from .._convert import explain as explain_array
    from .._read import read

    arrays = read(file, name=name, format=source_format)
    plans = (
        (each, None if array is None else explain_array(array, to=to, **casts.options))
        for each, array in arrays.items()
    )
    print_table(("array", "from", "to", "memory"), [_row(each, plan) for each, plan in plans])


def _row(name: str, plan: Plan | None) -> tuple[str, ...]:
    if plan is None:
        return (name, "None", "None", "")
    return (name, str(plan.source), _result(plan), in_options(_memory(plan)))


def _result(plan: Plan) -> str:
    if plan.error is not None:
        return "-"
    if plan.leaves:
        return f"{len(plan.leaves)} fields"
    return f"{plan.dtype}[{','.join(map(str, plan.shape))}]"


def _memory(plan: Plan) -> str:
    """What happens to the bytes, why, and what else there is to know."""
    from .._drawing import memory_word
    from .._plan import MOVABLE

    if plan.error is not None:
        return str(plan.error)
    notes = (note for note in plan.notes if note != MOVABLE)  # a command moves no tensor
    return "; ".join(part for part in (memory_word(plan), plan.reason, *notes) if part)
