"""Functions that say which option was meant where they are given one that they do not have; takes no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def names_what_is_meant(meant: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function whose options are all keyword-only; its name, signature and docstring stay what they are.

    Args:
        meant: What helps instead, by names that people give it from elsewhere; see `unknown_option`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = getattr(function, "__kwdefaults__", None) or {}

        @wraps(function)
        def checked(*args: P.args, **options: P.kwargs) -> T:
            for name in options:
                if name not in known:
                    from ._options import unknown_option

                    raise unknown_option(function.__name__, name, known, meant)
            return function(*args, **options)

        return checked

    return decorate
