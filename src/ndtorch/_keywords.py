"""Functions that say which option was meant where they are given one that they do not have; takes no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def names_what_is_meant(meant: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function, or the ``__init__`` of a class; name, signature and docstring stay what they are.

    Args:
        meant: What helps instead, by names that people give it from elsewhere; see `unknown_option`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        found = signature(function).parameters.items()
        known = [name for name, one in found if name != "self" and one.kind is not Parameter.POSITIONAL_ONLY]
        subject = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def checked(*args: P.args, **options: P.kwargs) -> T:
            for name in options:
                if name not in known:
                    from ._options import unknown_option

                    raise unknown_option(subject, name, known, meant)
            return function(*args, **options)

        return checked

    return decorate
