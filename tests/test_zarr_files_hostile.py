"""Zarr stores that lie, lead astray or are broken: an error for what is wrong, and the rest can be read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_zarr_files import GZIP, stored

import ndtorch as nd
from ndtorch.files import open_file

zarr: Any = pytest.importorskip("zarr", minversion="3", reason="zarr-python 3 is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    stored(tmp_path / "a.zarr", np.arange(5), "fine")
    return tmp_path / "a.zarr"


def error_of(path: Path, name: str = "bad") -> str:
    """What reading one array says; what else there is has to be read."""
    arrays = open_file(path)
    assert arrays["fine"].read().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises((nd.FormatError, nd.UnsupportedTypeError)) as caught:
        arrays[name].read()
    return str(caught.value)


def change(path: Path, **claims: Any) -> None:
    """Have the metadata of the array claim something else."""
    place = path / "bad" / ("zarr.json" if (path / "bad/zarr.json").exists() else ".zarray")
    place.write_text(json.dumps(json.loads(place.read_text()) | claims))


# --- chunks


@pytest.mark.parametrize("version", [2, 3])
def test_missing_chunks_are_an_error_with_their_number(version: int, tmp_path: Path) -> None:
    stored(tmp_path / "a.zarr", np.arange(5), "fine", version)
    stored(tmp_path / "a.zarr", np.ones((9, 9)), "bad", version, chunks=(3, 3))
    keys = ("c/1/2", "c/0/0") if version == 3 else ("1.2", "0.0")
    for key in keys:
        (tmp_path / "a.zarr/bad" / key).unlink()
    message = error_of(tmp_path / "a.zarr")
    assert f"2 of its 9 chunks, such as {keys[1]!r}, are missing" in message
    assert "write_empty_chunks" in message


@pytest.mark.parametrize("place", ["start", "end"])
def test_chunks_missing_in_a_shard_are_an_error(place: str, path: Path) -> None:
    group = zarr.open_group(path)
    serializer = zarr.codecs.ShardingCodec(chunk_shape=(2, 2), index_location=place)
    for name in ("good", "bad"):
        group.create_array(name, shape=(7, 7), chunks=(4, 4), dtype="i4", serializer=serializer, compressors=None)
    group["good"][...] = 1
    group["bad"][...] = np.arange(49).reshape(7, 7) // 20
    assert open_file(path)["good"].read().sum() == 49
    assert "chunks in shard 'c/0/0' are missing" in error_of(path)
    for array, is_whole in ((group["good"], True), (group["bad"], False)):
        if is_whole:
            assert int(nd.to_torch(array).sum()) == 49
        else:
            with pytest.raises(nd.FormatError, match="chunks in its shards are missing"):
                nd.to_torch(array)


def test_a_shard_that_ends_before_its_index_is_an_error(path: Path) -> None:
    stored(path, np.ones((4, 4)), "bad", chunks=(2, 2), shards=(4, 4))
    (path / "bad/c/0/0").write_bytes(b"short")
    assert "ends before its index" in error_of(path)


@pytest.mark.parametrize("nbytes", [0, 71, 73, 1000])
def test_a_chunk_of_another_size_is_an_error(nbytes: int, path: Path) -> None:
    stored(path, np.ones((9, 9)), "bad", chunks=(3, 3), compressors=None)
    (path / "bad/c/1/1").write_bytes(bytes(nbytes))
    assert "chunk 'c/1/1' has another size; expected 72" in error_of(path)


@pytest.mark.parametrize("codec", ["gzip", "zstd", "blosc"])
@pytest.mark.parametrize("damage", ["bomb", "short", "junk", "empty"])
def test_a_chunk_that_unpacks_to_another_size_is_an_error(codec: str, damage: str, path: Path) -> None:
    import numcodecs

    kinds = {"gzip": zarr.codecs.GzipCodec(), "zstd": zarr.codecs.ZstdCodec(), "blosc": zarr.codecs.BloscCodec()}
    stored(path, np.ones((9, 9)), "bad", compressors=kinds[codec])
    encode = numcodecs.get_codec({"id": codec}).encode
    raw = {"bomb": encode(bytes(50 << 20)), "short": encode(bytes(8)), "junk": b"\x02\x01 junk" * 9, "empty": b""}
    (path / "bad/c/0/0").write_bytes(raw[damage])
    assert "bad" in error_of(path)


# --- metadata


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"shape": [1 << 40, 1 << 40]}, "more bytes than there are addresses"),
        ({"shape": [1 << 30, 9]}, "are missing|claims"),
        ({"shape": [-1, 9]}, "read: "),
        ({"shape": [1] * 100}, "read: "),
        ({"shape": "abc"}, "read: "),
        ({"data_type": "float4_e2m1fn"}, "cannot be read by zarr"),
        ({"data_type": {"name": "numpy.datetime64"}}, "cannot be read by zarr"),
        ({"codecs": []}, "cannot be read by zarr"),
        ({"codecs": [{"name": "nobody knows"}]}, "cannot be read by zarr"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}}, "read: "),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 3]}}}, "claims chunks of"),
        ({"node_type": "file"}, "claims to be a 'file'"),
        ({"fill_value": "many"}, "cannot be read by zarr"),
    ],
)
def test_metadata_that_says_nothing_sensible_is_an_error(claims: dict[str, Any], words: str, path: Path) -> None:
    stored(path, np.ones((9, 9)), "bad", chunks=(3, 3), compressors=GZIP)
    change(path, **claims)
    import re

    assert re.search(words, error_of(path))


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_metadata_that_is_no_json_object_is_an_error(raw: bytes, path: Path) -> None:
    stored(path, np.ones(3), "bad")
    (path / "bad/zarr.json").write_bytes(raw)
    assert "zarr.json is no JSON" in error_of(path)


class _Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("key", ["filters", "compressor"])
def test_nothing_is_ever_unpickled(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "a.zarr", np.arange(5), "fine", 2)
    stored(tmp_path / "a.zarr", np.ones(3), "bad", 2, compressors=None)
    (tmp_path / "a.zarr/bad/0").write_bytes(pickle.dumps(_Trap()))
    codec = {"id": "pickle", "protocol": 4}
    change(tmp_path / "a.zarr", **{key: [codec] if key == "filters" else codec})
    assert "never unpickled" in error_of(tmp_path / "a.zarr")
    change(tmp_path / "a.zarr", dtype="|O")
    assert "never unpickled" in error_of(tmp_path / "a.zarr")
    assert not Path("executed").exists()


def test_text_of_varying_length_is_named(path: Path) -> None:
    stored(path, np.array(["a", "bc"], np.dtypes.StringDType()), "bad")
    assert "varying length" in error_of(path)


# --- folders


def test_links_that_lead_out_are_not_followed(path: Path) -> None:
    stored(path, np.ones(3), "bad", compressors=None)
    secret = path.with_name("secret")
    secret.write_bytes(bytes(24))
    (path / "bad/c/0").unlink()
    (path / "bad/c/0").symlink_to(secret)
    assert "has a link out of its folder, 'c/0'" in error_of(path)
    (path / "bad/c/0").unlink()
    (path / "bad/zarr.json").rename(path.with_name("zarr.json"))
    (path / "bad/zarr.json").symlink_to(path.with_name("zarr.json"))
    assert "is a link out of its folder" in error_of(path)
    (path / "group").symlink_to(path.parent)
    (path / "circle").symlink_to(path)
    assert "is a link, to" in error_of(path, "group")
    assert "is a link, to" in error_of(path, "circle")


def test_folders_that_are_no_stores_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(nd.FormatError, match="no zarr store"):
        nd.read(tmp_path / "b.zarr")
    (tmp_path / "c.zarr").touch()
    with pytest.raises(nd.FormatError, match="is a file; a zarr store is a folder"):
        nd.read(tmp_path / "c.zarr")
    (path / "bad").mkdir()
    assert "is a folder that has none of" in error_of(path)


def test_groups_in_groups_have_an_end(path: Path) -> None:
    group = json.loads((path / "zarr.json").read_text())
    inner = path
    for _ in range(110):
        inner = inner / "g"
        inner.mkdir()
        (inner / "zarr.json").write_text(json.dumps(group))
    assert "lies more than 100 groups deep" in error_of(path, "/".join(["g"] * 101))
