"""Conversions into shards that have not finished: the call, and the command, that go on with one.

A conversion keeps a note of what it was asked for beside its shards, ``.ndtorch/made_for.json``: its sources and, as a
list within a text, its options.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import NamedTuple

NOTE = ".ndtorch/made_for.json"
OPTIONS = {
    "version": 1,
    "to": "safetensors",
    "shard_size": 256_000_000,
    "name": None,
    "source_format": None,
    "dtype": "None",
    "float_dtype": "None",
    "casting": "same_kind",
    "rows": "axis",
    "missing_chunks": "error",
}
"""The options in their order, and what they are where nobody has said anything."""

_IN_COMMANDS = {"source_format": "--from"}
_MOST_SOURCES = 8  # that a hint spells


class WayOn(NamedTuple):
    """What finishes a conversion, as a hint.

    Attributes:
        call: In Python.
        command: On the command line.
    """

    call: str
    command: str


def way_on(read_note: Callable[[], bytes], target: str) -> WayOn:
    """Say what finishes a conversion.

    Args:
        read_note: Reads the note; any error means that there is none.
        target: The folder of the shards, as errors show it.

    >>> options = [1, "npy", 4096, None, None, "float32", "None", "same_kind", "axis"]
    >>> note = {"sources": ["/data/raw"], "options": json.dumps(options)}
    >>> one = way_on(lambda: json.dumps(note).encode(), "my shards")
    >>> one.call
    "ndtorch.convert_many(['/data/raw'], 'my shards', to='npy', shard_size=4096, dtype='float32') finishes it"
    >>> one.command
    "ndtorch convert /data/raw 'my shards' --shard-size 4096 --to npy --dtype float32 finishes it"
    """
    try:
        facts = json.loads(read_note())
        sources = [str(source) for source in facts["sources"]]
        options = dict(zip(OPTIONS, json.loads(facts["options"]), strict=False))
        size = options["shard_size"]
    except Exception:  # of any driver, or of a note that somebody has edited
        return WayOn("convert_many, as it was called before, finishes it", "the same command as before finishes it")
    if len(sources) > _MOST_SOURCES:
        named, spelled, which = "sources", "SRC...", f", with the {len(sources):,} sources that it had,"
    else:
        named, spelled, which = repr(sources), shlex.join(sources), ""
    said = {name: value for name, value in options.items() if value != OPTIONS[name]}
    words = "".join(f", {name}={value!r}" for name, value in said.items())
    said = {"shard_size": size, **said}  # without it there would be no shards
    flags = [f"{_IN_COMMANDS.get(name, '--' + name.replace('_', '-'))} {shlex.quote(str(said[name]))}" for name in said]
    return WayOn(
        f"ndtorch.convert_many({named}, {target!r}{words}){which} finishes it",
        f"ndtorch convert {spelled} {shlex.quote(target)} {' '.join(flags)}{which} finishes it",
    )
