"""The ledger: one small file for every finished unit, under a name that says what it is of and what for.

It is kept beside the outputs, in ``.ndtorch/units``. One listing tells which units are done, so a run that was killed
anywhere goes on where it stopped, and one whose sources or options have changed does again what they concern. A unit
enters the ledger when its outputs are under their names and safe. Before it is done again its old entry is set aside,
so that nothing old vouches for what is new. Before outputs get their names an entry under another name announces them:
a kill in between leaves nothing that nobody knows of. What only such entries have is removed at the end.

An entry is a line of JSON, which is all that is needed to go on, and after it the checksum of that line, as eight
hexadecimal digits, and the sources, packed.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files.remote import shown
from ..files.sharded import KEPT
from ..files.sharded import NAME as INDEX
from .places import Place
from .units import Unit

FOLDER = KEPT
VERSION = 2
_NAME = re.compile(r"(\d{6,18})-([0-9a-f]{24})\.(json|old|new)")
_BATCH = 256  # entries that are read together; each may have hundreds of outputs
_DIGITS = 8  # of a checksum
_FEW = 64  # outputs of an entry that is kept in memory


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was written.

    Attributes:
        name: Its path in the place.
        rows: How many rows each of its arrays has; 0 where they are no rows of one table.
        nbytes: How long it is; of a store of several files all of these together.
        crc32: The checksum of all its bytes.
        arrays: Of rows the checksums of the elements, by the name of the array.
    """

    name: str
    rows: int
    nbytes: int
    crc32: int
    arrays: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """A source that could not be converted.

    Attributes:
        path: The source.
        reason: Why.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a unit.

    Attributes:
        number: Which unit it is.
        key: What it was made of, and how.
        outputs: What was written.
        failures: What was left out.
        schema: Dtype and shape of a row, by the name of the array; empty where the outputs are no rows of one table.
        seconds: How long it took.
    """

    number: int
    key: str
    outputs: tuple[Output, ...]
    failures: tuple[Failure, ...] = ()
    schema: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes that were written."""
        return sum(output.nbytes for output in self.outputs)


class Ledger:
    """The entries in a place.

    Args:
        place: Where the outputs are.
        options: All that an output depends on beside its sources, as text.
        folder: Where in the place they are.
        schema: Dtype and shape of the rows of all units; where it is not said, any will do.
    """

    def __init__(
        self,
        place: Place,
        options: str,
        folder: str = FOLDER,
        schema: dict[str, tuple[str, tuple[int, ...]]] | None = None,
    ) -> None:
        self._place = place
        self._options = options
        self._folder = folder
        self._schema = schema
        self._wanted: dict[int, str] = {}  # names that entries have to have
        self._read: dict[str, Entry] = {}
        self._entered: set[str] = set()  # by this run: their outputs are there

    # --- what is there

    def begin(self, units: Sequence[Unit]) -> set[int]:
        """Say which of the units that this run is for are done, and prepare to do the others.

        Of the others old entries are set aside, and the index goes, since it is of what is going to be replaced. Units
        that had failures are done again: what was wrong may be so no more.
        """
        done = self.kept(units)
        left = {unit.number for unit in units} - done
        if left and self._folder == FOLDER:
            self._place.check_free([(INDEX, False)])
            self._place.remove([INDEX])
        stale = [name for name, number, is_old in self._listed() if number in left and not is_old]
        self._place.rename(
            {f"{self._folder}/{name}": f"{self._folder}/{name.removesuffix('.json')}.old" for name in stale}
        )
        for name in stale:
            self._read.pop(name, None)
        return done

    def kept(self, units: Iterable[Unit]) -> set[int]:
        """Numbers of the units that are done and had no failures: those that are not done again."""
        return {number for number, has_failures in self._done(units).items() if not has_failures}

    def done(self, units: Iterable[Unit]) -> set[int]:
        """Numbers of the units that are done as they are wanted, with all their outputs still there."""
        return set(self._done(units))

    def _done(self, units: Iterable[Unit]) -> dict[int, bool]:
        """The same, and whether each had failures."""
        units = list(units)
        for unit in units:
            if unit.number not in self._wanted:
                self._wanted[unit.number] = f"{unit.number:06d}-{unit.key(self._options)}.json"
        wanted = {self._wanted[unit.number] for unit in units}
        names = [name for name, _, is_old in self._listed() if not is_old and name in wanted]
        finished = {}
        with self._place.looking() as sizes:
            for name, entry in self._entries(names):
                if (
                    entry is not None
                    and self._is_wanted(entry)
                    and (name in self._entered or all(sizes.of(each.name) == each.nbytes for each in entry.outputs))
                ):
                    finished[entry.number] = bool(entry.failures)
        return finished

    def _is_wanted(self, entry: Entry) -> bool:
        """Whether its rows are those of the others: the first file, which says what they are, may have changed."""
        return self._schema is None or not entry.outputs or entry.schema == self._schema

    def read(self, numbers: Iterable[int]) -> Iterator[Entry]:
        """Read what became of units that are done.

        Raises:
            KeyError: One is not in the ledger, or its entry is damaged.
        """
        for name, found in self._entries([self._wanted[number] for number in numbers]):
            if found is None:
                raise KeyError(name)
            yield found

    def sources(self, number: int) -> list[tuple[str, int, str]]:
        """Path, length and stamp of every source of a unit that is done."""
        packed = self._place.read(f"{self._folder}/{self._wanted[number]}").partition(b"\n")[2][_DIGITS:]
        return [(path, nbytes, stamp) for path, nbytes, stamp in json.loads(zlib.decompress(packed))]

    def _listed(self) -> list[tuple[str, int, bool]]:
        """Names of the entries, the units that they are of, and whether they vouch for nothing."""
        found = map(_NAME.fullmatch, sorted(self._place.sizes(self._folder)))
        return [(match[0], int(match[1]), match[3] != "json") for match in found if match]

    def _entries(self, names: Sequence[str]) -> Iterator[tuple[str, Entry | None]]:
        """Read entries, of those behind URLs several at a time; ``None`` for what is damaged."""
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            new = [name for name in batch if name not in self._read]
            read = dict(zip(new, self._place.several(self._entry, new), strict=True))
            yield from ((name, read[name] if name in read else self._read.get(name)) for name in batch)

    def _entry(self, name: str) -> Entry | None:
        try:
            raw = self._place.read(f"{self._folder}/{name}")
            head, _, rest = raw.partition(b"\n")
            if rest[:_DIGITS] != b"%08x" % zlib.crc32(head):
                return None
            entry = _entry(json.loads(head), rest[_DIGITS:])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return None
        if f"{entry.number:06d}-{entry.key}" != name.rpartition(".")[0]:
            return None
        if len(entry.outputs) <= _FEW:
            self._read[name] = entry
        return entry

    # --- what is written

    def enter(self, unit: Unit, entry: Entry) -> None:
        """Enter a unit, whose outputs are under their names and safe."""
        name = f"{unit.number:06d}-{unit.key(self._options)}.json"
        self._wanted[unit.number] = name
        self._place.put(f"{self._folder}/{name}", _packed(unit, entry))
        self._entered.add(name)
        self._read.pop(name, None)
        if len(entry.outputs) <= _FEW:
            self._read[name] = entry

    def tidy(self, units: Iterable[Unit]) -> list[str]:
        """Remove the outputs of entries that are no longer true, and these; for who has seen that all units are done.

        Only what an entry says, and what is as long as it says, is removed.
        """
        for unit in units:
            self._wanted.setdefault(unit.number, f"{unit.number:06d}-{unit.key(self._options)}.json")
        wanted, listed = set(self._wanted.values()), [name for name, _, _ in self._listed()]
        stale = [name for name in listed if name not in wanted]
        kept = {name.rpartition(".")[0] for name in listed if name in wanted}
        told = [name for name in stale if not (name.endswith(".new") and name.rpartition(".")[0] in kept)]
        left: dict[str, set[int]] = {}  # lengths that entries say of a name
        for _, entry in self._entries(told):
            for each in entry.outputs if entry else ():
                left.setdefault(each.name, set()).add(each.nbytes)
        if left:
            for _, entry in self._entries([name for name in listed if name in wanted]):
                for each in entry.outputs if entry else ():
                    left.pop(each.name, None)
        with self._place.looking() as sizes:
            removed = [name for name, lengths in left.items() if sizes.of(name) in lengths]
        self._place.remove(removed)
        self._place.remove([f"{self._folder}/{name}" for name in stale])
        for name in stale:
            self._read.pop(name, None)
        return removed


def announce(place: Place, folder: str, entry: Entry) -> None:
    """Say what a unit is about to publish, for who comes after a kill."""
    place.put(f"{folder}/{entry.number:06d}-{entry.key}.new", _packed(Unit(entry.number, ()), entry))


# --- entries as text


def _packed(unit: Unit, entry: Entry) -> bytes:
    sources = json.dumps([[shown(file.path), file.nbytes, file.stamp] for file in unit.files])
    packed = zlib.compress(sources.encode("utf-8", "surrogateescape"), 3)
    facts = {
        "version": VERSION,
        "number": entry.number,
        "key": entry.key,
        "outputs": [[each.name, each.rows, each.nbytes, each.crc32, each.arrays] for each in entry.outputs],
        "failures": [[each.path, each.reason] for each in entry.failures],
        "schema": entry.schema,
        "seconds": round(entry.seconds, 3),
        "sources": {"count": len(unit.files), "nbytes": len(packed), "crc32": zlib.crc32(packed)},
    }
    head = json.dumps(facts).encode()
    return b"%s\n%08x%s" % (head, zlib.crc32(head), packed)


def _entry(facts: dict[str, Any], packed: bytes) -> Entry:
    sources = facts["sources"]
    if facts["version"] != VERSION or len(packed) != sources["nbytes"] or zlib.crc32(packed) != sources["crc32"]:
        raise ValueError("it is damaged, or of another version")
    return Entry(
        int(facts["number"]),
        str(facts["key"]),
        tuple(
            Output(_checked(name), int(rows), int(nbytes), int(crc), arrays)
            for name, rows, nbytes, crc, arrays in facts["outputs"]
        ),
        tuple(Failure(path, reason) for path, reason in facts["failures"]),
        {name: (dtype, tuple(shape)) for name, (dtype, shape) in facts["schema"].items()},
        float(facts["seconds"]),
    )


def _checked(name: Any) -> str:
    """A name that leads nowhere else: what an entry says is removed some day."""
    steps = str(name).split("/")
    if not all(steps) or {".", ".."} & set(steps) or steps[0] == ".ndtorch" or "\0" in name:
        raise ValueError(f"{name!r} is no name of an output")
    return str(name)
