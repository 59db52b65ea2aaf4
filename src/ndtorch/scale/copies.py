"""The other thing to do with a unit: one output for each of its sources, under the name of the source."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from .._errors import FormatError
from .._pairs import Source
from ..files import FORMATS, Format, format_to_write, stem
from ..files.items import Item
from ..files.names import SEPARATOR, checked, checked_path
from ..files.output import Output as Stream
from ..files.remote import shown
from .ahead import Ahead
from .ledger import Entry
from .outputs import Scratch, Written
from .places import FOLDER, Place
from .rows import REFUSALS, Items, Reading, equal_run, is_of_target, named, opened
from .stopping import check_stopped
from .units import SourceFile, Unit
from .work import Broken, done_whole

SUFFIXES = {suffix for format in FORMATS for suffix in format.suffixes}
LEDGER = f"{FOLDER}/files"
"""Where the ledger of such a conversion is: it is none of shards, and its folder is read as any other."""


_SMALL = 1 << 20  # bytes of elements to which a format may add a noticeable part


@dataclass(frozen=True, slots=True)
class FileWork:
    """Converts each file of a unit; it can be pickled, and knows nothing of other units.

    Attributes:
        target: The folder or URL of the outputs.
        format: Name of their format.
        reading: How sources are read. Without its ``name`` an array alone has the name of its file.
        options: All that an output depends on beside its sources, as text.
        skips: Whether a file that cannot be converted is left out; else it stops the unit.
        verify: Whether what was written is read back and compared.
        keeps_stems: Whether an array that has no name in its file gets that of the file.
    """

    target: str
    format: str
    reading: Reading
    options: str
    skips: bool = False
    verify: bool = False
    keeps_stems: bool = True

    def __call__(self, unit: Unit) -> Entry:
        """Convert the files of a unit.

        Raises:
            NdtorchError: A file cannot be converted, and none is to be left out.
        """
        return done_whole(unit, self._written, self, {}, LEDGER)

    def _written(self, unit: Unit, files: Sequence[SourceFile], scratch: Scratch) -> tuple[list[Written], Broken]:
        format, make, ahead = format_to_write("", self.format), Items(self.reading.casts), Ahead(files)
        written: list[Written] = []
        broken: Broken = []
        while len(written) + len(broken) < len(files):
            at = len(written) + len(broken)
            try:
                for each in self._copied(files, at, format, make, ahead, scratch):
                    written.append(each)
            except REFUSALS as error:
                at = len(written) + len(broken)
                if is_of_target(error):
                    raise
                if not self.skips:
                    raise named(error, files[at]) from None
                broken.append((files[at], error))
        return written, broken

    def _copied(
        self, files: Sequence[SourceFile], at: int, format: Format, make: Items, ahead: Ahead, scratch: Scratch
    ) -> Iterator[Written]:
        """Convert a file, and those after it that are like it."""
        arrays = opened(files[at], self.reading, self._name_of(files[at]), ahead)
        items = [make.of_file(name, array) for name, array in arrays.items()]
        run = equal_run(files, at, arrays, make, is_row=True) if arrays.format.is_of_one else None
        if run is None:
            yield self._write(files[at], format, items, scratch)
            return
        for number, file in enumerate(run.files):
            yield self._write(file, format, [run.of(number, self._name_of(file))], scratch)

    def _write(self, file: SourceFile, format: Format, items: Sequence[Item], scratch: Scratch) -> Written:
        for item in () if format.is_of_one else items:
            checked(item.name)
        return scratch.write(output_of(file, format), format, items, verify=self.verify)

    def _name_of(self, file: SourceFile) -> str:
        return stem(file.path) if self.keeps_stems else self.reading.name


def output_of(file: SourceFile | Source, format: Format) -> str:
    """The path of the output in the place: that of the source below the folder that it was found by, as `pair_up` has.

    >>> output_of(Source("data/a/x.npy", "a/x.npy"), format_to_write("", "safetensors"))
    'a/x.safetensors'
    """
    start, suffix = os.path.splitext(file.name)
    is_known = suffix.lower() in SUFFIXES
    return checked_path((start if is_known else file.name).replace(os.sep, SEPARATOR)) + format.suffixes[0]


def nbytes_as_written(format: Format, items: Sequence[Item]) -> int:
    """How long the output of a source is, with what its format adds to small ones.

    Raises:
        NdtorchError: The format cannot hold it.
    """
    format.writer.check(items)
    for item in () if format.is_of_one else items:
        checked(item.name)
    nbytes = sum(item.nbytes for item in items)
    if format.target != "stream" or nbytes > _SMALL:
        return nbytes
    buffer = io.BytesIO()
    format.writer.write(Stream(cast(BinaryIO, buffer), check_stopped), items)
    return len(buffer.getbuffer())


def check_outputs(files: Iterable[SourceFile], format: Format, place: Place, *, overwrite: bool = False) -> None:
    """Refuse outputs that would be one file, and those that exist and that no conversion of ours has made.

    A place that has a ledger of such a conversion is taken for ours.

    Raises:
        FormatError: Names them.
    """
    first: dict[str, SourceFile] = {}
    for file in files:
        name = output_of(file, format)
        other = first.setdefault(name, file)
        if other is not file:
            fact = f"{shown(other.path)!r} and {shown(file.path)!r} would both become {name!r}"
            hint = "a quoted pattern from a folder above both, such as 'folder/**', keeps the folders"
            raise FormatError("convert", fact, hint=hint)
    if overwrite or place.sizes(LEDGER):
        return
    with place.looking() as sizes:
        found = next((name for name in first if sizes.of(name) is not None), None)
    if found is not None:
        fact = f"{shown(place.member(found))!r} exists, and no conversion of this folder has made it"
        raise FormatError("convert", fact, hint="--overwrite replaces it, all or nothing")
