"""Options of a loader that are numbers or switches, that exclude each other, or that are none of it."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from .._errors import InvalidOptionError

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


# --- options of torch's DataLoader that are none here

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
