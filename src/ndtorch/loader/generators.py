"""Random numbers that a sampler draws from: the global generators, under a seed for a while, and those of its own."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Sampler

from .._turns import Turns

if TYPE_CHECKING:  # to name np.random imports it, which takes longer than all of this package
    Generator: TypeAlias = torch.Generator | np.random.Generator | random.Random

_turns = Turns()  # the generators are those of the whole process

_NESTED = ("sampler", "batch_sampler")  # under which names a sampler has another one that need not be of torch's class


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Have the global generators of torch's CPU, NumPy and Python begin with a key, and leave them as they were."""
    with _turns.taken():
        known = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
        try:
            torch.default_generator.manual_seed(key)  # torch.manual_seed would seed the devices too
            np.random.seed(key & 0xFFFFFFFF)
            random.seed(key)
            with torch.device("cpu"):  # samplers draw on the default device, whose generator is not seeded
                yield
        finally:
            torch.default_generator.set_state(known[0])
            np.random.set_state(known[1])
            random.setstate(known[2])


def samplers_in(sampler: Any) -> list[Any]:
    """A sampler and those that it draws from."""
    found: list[Any] = []
    waiting = [sampler]
    while waiting:
        one = waiting.pop(0)
        if any(one is known for known in found):
            continue
        found.append(one)
        attributes = getattr(one, "__dict__", {})
        waiting += [value for name, value in attributes.items() if name in _NESTED or isinstance(value, Sampler)]
    return found


def generators_in(sampler: Any) -> list[Generator]:
    """The generators that a sampler and those that it draws from hold, in the order of their attributes."""
    found: list[Generator] = []
    for one in samplers_in(sampler):
        for value in getattr(one, "__dict__", {}).values():
            if isinstance(value, torch.Generator | np.random.Generator | random.Random) and not any(
                value is known for known in found
            ):
                found.append(value)
    return found


def save(generator: Generator) -> str:
    """Give the state of a generator as text."""
    if isinstance(generator, torch.Generator):
        return base64.b64encode(generator.get_state().numpy().tobytes()).decode()
    if isinstance(generator, random.Random):
        return json.dumps(generator.getstate())
    return json.dumps(generator.bit_generator.state, default=np.ndarray.tolist)


def restore(generator: Generator, text: str) -> None:
    """Put a generator into a state that another one of its kind had.

    Raises:
        ValueError: That is no state of a generator of its kind.
    """
    try:
        if isinstance(generator, torch.Generator):
            numbers = bytearray(base64.b64decode(text, validate=True))
            generator.set_state(torch.frombuffer(numbers, dtype=torch.uint8))
        elif isinstance(generator, random.Random):
            version, numbers_, gauss = json.loads(text)
            generator.setstate((version, tuple(numbers_), gauss))
        else:
            generator.bit_generator.state = json.loads(text)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"no state of a {type(generator).__name__}: {error}") from None


def check(generator: Generator, text: str) -> None:
    """Raise what `restore` would, and leave the generator as it is."""
    restore(generator.clone_state() if isinstance(generator, torch.Generator) else copy.deepcopy(generator), text)
