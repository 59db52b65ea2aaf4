"""Which order the options of a loader ask for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._errors import InvalidOptionError, UnsupportedTypeError
from .checks import SUBJECT, exclude, shown, whole_number
from .draws import weighted
from .orders import Ordering, Sequential, Shuffled
from .samplers import Sampled, is_list, listed
from .windows import Windowed, block_of, default_window


class OrderOptions(NamedTuple):
    """What is asked for, as `Loader` documents it."""

    shuffle: Any = False
    window: Any = None
    weights: Any = None
    num_samples: Any = None
    sampler: Any = None
    batch_sampler: Any = None


def ordering_of(length: int, options: OrderOptions, *, row_bytes: int = 0, stretch: int = 1) -> Ordering:
    """Give the ordering of so many rows.

    Args:
        length: How many.
        options: What is asked for.
        row_bytes: About how many bytes a row has.
        stretch: How many rows are read as one.

    Raises:
        InvalidOptionError: An option has no such value, or two exclude each other.
        UnsupportedTypeError: A sampler cannot be iterated.
    """
    _check_together(options)
    if options.batch_sampler is not None:
        return _sampled("batch_sampler", options.batch_sampler, length)
    if options.sampler is not None:
        return _sampled("sampler", options.sampler, length)
    if options.weights is not None:
        count = None if options.num_samples is None else whole_number("num_samples", options.num_samples, least=1)
        return weighted(length, options.weights, count)
    if options.shuffle == "window":
        window = default_window(row_bytes)
        window = window if options.window is None else whole_number("window", options.window, least=1)
        return Windowed(length, window, block_of(window, stretch))
    return Shuffled(length) if options.shuffle else Sequential(length)


def draws_for_itself(ordering: Ordering) -> bool:
    """Whether an order is that of one process, whatever the others do."""
    return isinstance(ordering, Sampled)


def _check_together(options: OrderOptions) -> None:
    shuffle = options.shuffle
    if not isinstance(shuffle, bool | np.bool_) and not (isinstance(shuffle, str) and shuffle == "window"):
        fact = f"shuffle={shown(shuffle)} has no meaning"
        raise InvalidOptionError(SUBJECT, fact, expected="True, False or 'window'", got=shown(shuffle))
    given = {name: value is not None for name, value in options._asdict().items()}
    given["shuffle"] = bool(shuffle)
    if given["sampler"] and is_list(options.sampler):
        exclude("sampler", f"sampler={_RANDOM}(rows) gives those rows in random order", shuffle=given["shuffle"])
    for option, why, others in _ALONE:
        if given[option]:
            exclude(option, why, **{other: given[other] for other in others})
    if given["window"] and shuffle != "window":
        raise InvalidOptionError(SUBJECT, f"window= goes with shuffle='window' alone, not with shuffle={shuffle}")
    if given["num_samples"] and not given["weights"]:
        raise InvalidOptionError(
            SUBJECT, "num_samples= goes with weights= alone", hint="weights=np.ones(n) draws from n"
        )


_RANDOM = "torch.utils.data.SubsetRandomSampler"
_ALONE = (
    ("batch_sampler", "a batch_sampler is all of the order", ("sampler", "shuffle", "weights")),
    ("sampler", "a sampler is all of the order", ("shuffle", "weights")),
    ("weights", "what is drawn by weights= is in random order", ("shuffle",)),
)


def _sampled(option: str, sampler: Any, length: int) -> Ordering:
    if option == "sampler" and is_list(sampler):
        return listed(sampler, length, option)
    if not hasattr(sampler, "__iter__") or isinstance(sampler, str | bytes | type):
        fact = f"{option}={shown(sampler)} cannot be iterated"
        raise UnsupportedTypeError(SUBJECT, fact, hint=f"{option}= takes an iterable of numbers of rows")
    return Sampled(sampler, length, is_batched=option == "batch_sampler")
