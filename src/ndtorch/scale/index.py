"""The index of a data set in shards: ``index.json`` beside them, by which `read` and `Loader` open it as one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .._errors import FormatError
from ..files.sharded import NAME, VERSION
from .ledger import Entry, Output
from .places import Place


def write_index(place: Place, format: str, entries: Iterable[Entry]) -> int:
    """Write the index of what the units have written, in their order; give the number of rows.

    The same entries give the same bytes, whoever writes them.
    """
    schema: dict[str, tuple[str, tuple[int, ...]]] = {}
    outputs: list[Output] = []
    for entry in sorted(entries, key=lambda entry: entry.number):
        if entry.outputs and schema and entry.schema != schema:
            fact = f"unit {entry.number} has other arrays than the units before it"
            raise FormatError("convert", fact, expected=schema, got=entry.schema)
        schema = schema or entry.schema
        outputs += entry.outputs
    rows = sum(output.rows for output in outputs)
    arrays = {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in schema.items()}
    shards: dict[str, Any] = {
        key: [getattr(output, key) for output in outputs] for key in ("name", "rows", "nbytes", "crc32")
    }
    shards["arrays"] = {name: [output.arrays[name] for output in outputs] for name in schema}
    index = {"ndtorch": VERSION, "format": format, "rows": rows, "arrays": arrays, "shards": shards}
    place.put(NAME, json.dumps(index, separators=(",", ":")).encode())
    return rows
