"""Torch's own files, hostile: nothing is executed, nothing is believed, and no small file takes much time or memory."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ndtorch as nd


def saved(folder: Path, value: Any, **options: Any) -> Path:
    torch.save(value, folder / "a.pt", **options)
    return folder / "a.pt"


def archive_of(folder: Path, pickled: bytes, **records: bytes) -> Path:
    """An archive as torch writes it, with any pickle and records."""
    with zipfile.ZipFile(folder / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"a/data/{name.removeprefix('_')}", data)
    return folder / "a.pt"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed_and_what_was_refused_is_named(tmp_path):
    for value, name in (
        (Bomb(tmp_path / "exploded"), "posix.mkdir"),
        (argparse.Namespace(a=1), "argparse.Namespace"),
        (np.float64(1), "numpy"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ):
        path = saved(tmp_path, {"x": torch.ones(1), "y": value})
        with pytest.raises(nd.UnsupportedTypeError, match=r"which is never looked up\. Hint: ") as error:
            nd.read(path)
        assert f"refers to '{name}" in str(error.value)
        assert "to_checkpoint" in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_what_the_error_of_a_module_says_makes_a_file_that_is_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.nn.Linear(2, 1), path)
    with pytest.raises(nd.UnsupportedTypeError, match=r"x = x\.state_dict\(\) comes before that"):
        nd.read(path)
    x = torch.load(path, weights_only=False)
    x = x.state_dict()
    torch.save(nd.to_checkpoint(x).state, path)
    assert list(nd.read(path)) == ["weight", "bias"]


def test_old_files_and_programs_are_told_how_to_be_saved_anew(tmp_path):
    path = saved(tmp_path, {"x": torch.ones(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(nd.UnsupportedTypeError, match=r"before 1\.6.*Hint: torch\.save\(torch\.load\("):
        nd.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/code/x.py", b"")
    with pytest.raises(nd.UnsupportedTypeError, match=r"is a TorchScript program\. Hint: .*torch\.jit\.load"):
        nd.read(path)


def tensor_pickle(size: bytes, stride: bytes, *, offset: bytes = b"K\x00", numel: bytes = b"K\x04") -> bytes:
    """A pickle of one tensor in the record 0."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + numel + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89}tR."


def nested_lists(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def laughs(count: int, seed: bytes) -> bytes:
    """Lists of which each holds the one before it twice."""
    steps = [b"\x80\x02(" + seed + b"q\x00"]
    steps += [b"](" + b"h" + bytes((i,)) + b"h" + bytes((i,)) + b"eq" + bytes((i + 1,)) for i in range(count)]
    return b"".join(steps) + b"t."


HOSTILE: dict[str, tuple[bytes, str]] = {
    "fine": (tensor_pickle(b"K\x04\x85", b"K\x01\x85"), ""),
    "expanded": (tensor_pickle(b"K\x04\x85", b"K\x00\x85"), ""),
    "too long": (
        tensor_pickle(b"K\x05\x85", b"K\x01\x85"),
        "reaches outside its storage, the record 'data/0'; expected 20",
    ),
    "too wide": (tensor_pickle(b"K\x03\x85", b"K\x02\x85"), "reaches outside its storage"),
    "too far": (tensor_pickle(b"K\x04\x85", b"K\x01\x85", offset=b"K\x01"), "reaches outside its storage"),
    "large storage": (tensor_pickle(b"K\x09\x85", b"K\x01\x85", numel=b"K\x09"), "reaches outside its storage"),
    "negative": (tensor_pickle(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "claims sizes or strides that are no counts"),
    "negative stride": (tensor_pickle(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"), "no counts: (-1,)"),
    "negative offset": (tensor_pickle(b"K\x01\x85", b"K\x01\x85", offset=b"J\xff\xff\xff\xff"), "no counts"),
    "truths": (tensor_pickle(b"\x88\x85", b"K\x01\x85"), "no counts: (True,)"),
    "overflow": (
        tensor_pickle(b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"),
        "outside",
    ),
    "more sizes": (tensor_pickle(b"K\x01K\x01\x86", b"K\x01\x85"), "is not made of a storage, sizes and strides"),
    "65 dimensions": (tensor_pickle(b"(" + b"K\x01" * 65 + b"t", b"(" + b"K\x01" * 65 + b"t"), "more than 64"),
    "no end": (tensor_pickle(b"K\x04\x85", b"K\x01\x85")[:-1], "has a pickle that is damaged"),
    "no pickle": (b"hello", "has a pickle"),
    "empty": (b"", "has a pickle that is damaged"),
    "two values": (b"\x80\x02NN.", "has a pickle that is damaged"),
    "odd items": (b"\x80\x02}(Nu.", "has a pickle that is damaged"),
    "no such memory": (b"\x80\x02h\x07.", "has a pickle that is damaged"),
    "other steps": (pickle.dumps([1], 0), "has a pickle with a step"),
    "deep": (nested_lists(5000), "a structure that is endless or absurd"),
    "cycle": (b"\x80\x02]q\x00h\x00a.", "a structure that is endless or absurd"),
    "laughs": (laughs(60, b"N"), "a structure that is endless or absurd"),
    "laughing tensors": (laughs(60, tensor_pickle(b"K\x04\x85", b"K\x01\x85")[2:-1]), "endless or absurd"),
    "laughing lists": (laughs(60, b"](K\x01K\x02e"), "endless or absurd"),
    "long names": (
        b"\x80\x02(X" + struct.pack("<I", 60_000) + b"x" * 60_000 + b"q\x00](" + b"}h\x00K\x01s" * 9000 + b"et.",
        "endless or absurd",
    ),
    "a call of nothing": (b"\x80\x02K\x01)R.", "it calls what is no function"),
    "a call within": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n)NtR.",
        "made by no function of torch's",
    ),
    "keys that are no names": (b"\x80\x02}]K\x01s.", "has a dict whose keys are no names: list"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_errors_in_no_time(kind, tmp_path):
    pickled, text = HOSTILE[kind]
    path = archive_of(tmp_path, pickled, _0=np.arange(4, dtype=np.float32).tobytes())
    if not text:
        assert len(nd.read(path)["a"][...]) == 4
        return
    with pytest.raises((nd.FormatError, nd.UnsupportedTypeError)) as error:
        nd.read(path)
    assert text in str(error.value)
    assert str(error.value).startswith(f"read: {str(path)!r} ")


def test_a_tensor_expanded_to_a_terabyte_is_named_and_never_read(tmp_path):
    path = archive_of(tmp_path, tensor_pickle(b"\x8a\x06" + bytes(5) + b"\x01\x85", b"K\x00\x85"), _0=bytes(16))
    with pytest.raises(nd.FormatError, match="array 'a' claims 4398046511104 bytes, expanded from 16"):
        nd.read(path)["a"][...]


def test_a_record_that_is_missing_or_packed_is_named(tmp_path):
    pickled = tensor_pickle(b"K\x04\x85", b"K\x01\x85")
    with pytest.raises(nd.FormatError, match="has no record 'data/0', which its pickle refers to"):
        nd.read(archive_of(tmp_path, pickled))
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", bytes(16), zipfile.ZIP_DEFLATED)
    with pytest.raises(nd.FormatError, match=r"that is packed, as torch\.save never does"):
        nd.read(tmp_path / "a.pt")


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_what_is_no_archive_is_a_format_error(data, tmp_path):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(nd.FormatError):
        nd.read(tmp_path / "a.pt")


def test_other_archives_are_not_torchs(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(1))
    with pytest.raises(nd.FormatError, match=r"was not written by torch\.save: it has 0 entries data\.pkl"):
        nd.read(tmp_path / "a.npz", format="pt")
    with pytest.raises(nd.FormatError, match=r"entry that is no array.*Hint: format='pt'"):
        nd.read(saved(tmp_path, {}), format="npz")
