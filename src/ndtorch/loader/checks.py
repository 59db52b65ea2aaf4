"""Options of a loader that are numbers or switches, that exclude each other, or that are none of it."""

from __future__ import annotations

import difflib
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from .._errors import InvalidOptionError

P = ParamSpec("P")

SUBJECT = "Loader"

_SEEDS = (-(1 << 63), (1 << 64) - 1)  # as in torch.manual_seed


def whole_number(option: str, value: Any, *, least: int, most: int = (1 << 63) - 1) -> int:
    """Read an option that counts something; a bool counts nothing.

    Raises:
        InvalidOptionError: It is no whole number, or not one from ``least`` to ``most``.
    """
    number = index_of(value)
    if number is None or not least <= number <= most:
        expected = f"a whole number of at least {least}" if number is None or number < least else f"at most {most}"
        raise InvalidOptionError(
            SUBJECT, f"{option}={shown(value)} has no meaning", expected=expected, got=shown(value)
        )
    return number


def seed_of(value: Any) -> int:
    """Read a seed: any number that torch takes for one, from -2**63 to 2**64 - 1."""
    return whole_number("seed", value, least=_SEEDS[0], most=_SEEDS[1])


def switch(option: str, value: Any) -> bool:
    """Read an option that is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidOptionError(
            SUBJECT, f"{option}={shown(value)} has no meaning", expected="True or False", got=shown(value)
        )
    return bool(value)


def exclude(option: str, why: str, **others: bool) -> None:
    """Refuse one option beside others, of which each is given or not.

    Raises:
        InvalidOptionError: Names both.
    """
    for other, is_given in others.items():
        if is_given:
            raise InvalidOptionError(SUBJECT, f"{option}= and {other}= were both given", hint=why)


def index_of(value: Any) -> int | None:
    """The whole number that something is, or None."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def shown(value: Any) -> str:
    """The value where it is short, else its type."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"<{type(value).__name__}>"


# --- names that are no options

_THREADS = "leave it away: threads do the work, and no processes"
_PINNED = "leave it away: device='cuda' gathers into pinned memory"
OF_DATALOADER = {  # what to write instead
    "dtype": "float_dtype='float32' casts floats, image=True makes planes of pixels",
    "generator": "seed=0",
    "in_order": "leave it away: batches come in order",
    "multiprocessing_context": _THREADS,
    "num_workers": "threads=4",
    "persistent_workers": _THREADS,
    "pin_memory": _PINNED,
    "pin_memory_device": _PINNED,
    "prefetch_factor": "prefetch=2",
    "timeout": _THREADS,
    "worker_init_fn": _THREADS,
}


def named_options(init: Callable[P, None]) -> Callable[P, None]:
    """Have an ``__init__`` say of an option that it has not what to write instead; else it is as it was."""
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        unknown = next((name for name in options if name not in names), None)
        if unknown is not None:
            raise TypeError(str(_no_option(unknown, options[unknown], names)))
        init(*args, **options)

    return checked


def _no_option(name: str, value: Any, names: list[str]) -> InvalidOptionError:
    nearest = [f"{each}=" for each in difflib.get_close_matches(name, names, 1)]
    hint = OF_DATALOADER.get(name) or ", ".join(nearest) or f"one of {', '.join(names)}"
    if name == "num_workers" and index_of(value) is not None:
        hint = f"threads={value}"
    return InvalidOptionError(SUBJECT, f"{name}= is no option of a loader", hint=hint)
