"""The entry point of the command line. `inspect` is quick: it waits neither for torch nor for the other commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

_FLAGS = {"--json": "as_json", "--stats": "stats"}
_OPTIONS = {"--from": "format", "--name": "name"}
_INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    _open_closed_streams()
    wanted = plain_inspect(sys.argv[1:])
    if wanted is not None and _has_inspected(**wanted):
        return
    from .cli import main as run

    run()


def _open_closed_streams() -> None:
    """Give ``>&-`` somewhere to go: a file that is opened later would get the stream's number, and its output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        stream or os.fdopen(number, "w" if number else "r", closefd=False)
        for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr))
    )


def plain_inspect(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Read the arguments of a call of `inspect` with nothing unusual in it; ``None`` leaves them to the whole thing.

    >>> plain_inspect(["inspect", "x.npy", "--name", "weights", "--json"])
    {'path': 'x.npy', 'name': 'weights', 'as_json': True}
    >>> plain_inspect(["inspect", "--help"]) is None
    True
    """
    if arguments[:1] != ["inspect"] and arguments[:1] != ("inspect",):
        return None
    wanted: dict[str, Any] = {}
    rest = iter(arguments[1:])
    for word in rest:
        option, equals, value = word.partition("=")
        if word in _FLAGS:
            wanted[_FLAGS[word]] = True
        elif option in _OPTIONS:
            wanted[_OPTIONS[option]] = value if equals else next(rest, None)
            if wanted[_OPTIONS[option]] is None:
                return None
        elif word.startswith("-") or not word or "path" in wanted:
            return None
        else:
            wanted["path"] = word
    return wanted if "path" in wanted else None


def _has_inspected(path: str, as_json: bool = False, **options: Any) -> bool:
    """Print; whatever goes wrong is left to the whole thing, which has words for it."""
    from ._errors import NdtorchError
    from ._inspect import inspect, printed

    try:
        print(printed(inspect(path, **options), as_json=as_json), flush=True)
    except (NdtorchError, OSError, MemoryError):
        return False
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    return True


if __name__ == "__main__":
    main()
