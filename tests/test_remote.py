"""Files behind URLs: ranges are read and not wholes, uploads appear whole or not at all, no secret is told."""

from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import fsspec
import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from comparison import assert_same
from PIL import Image
from servers import SECRET, Request, S3Server, WebServer, new_bucket, s3_of_fsspec

import ndtorch as nd
from ndtorch.files import FORMATS, remote, stem
from ndtorch.files.arrays import BLOCK
from ndtorch.files.upload import upload_folder

pytestmark = pytest.mark.once

FORMATS_BOTH_WAYS = [row.name for row in FORMATS if row.target]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_of_fsspec() as server:
        yield server


@pytest.fixture
def s3(server) -> Iterator[str]:
    """The URL of a bucket that is empty."""
    with new_bucket(server) as bucket:
        yield f"s3://{bucket}"


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    yield "memory://folder"
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def objects(url: str) -> dict[str, bytes]:
    """All there is in a bucket or folder, as fsspec sees it."""
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return {name[len(path) + 1 :]: files.cat_file(name) for name in files.find(path)}


def uploads(server: S3Server, url: str) -> list[str]:
    files = fsspec.filesystem("s3")
    found = files.call_s3("list_multipart_uploads", Bucket=url.removeprefix("s3://"))
    return [each["Key"] for each in found.get("Uploads", [])]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# --- reading


def test_array_of_an_object_is_what_numpy_saved(s3):
    array = numbers(300, 20)
    fsspec.filesystem("s3").pipe_file(f"{s3}/d/a.npy", npy(array))
    found = nd.read(f"{s3}/d/a.npy")
    assert list(found) == ["a"]
    assert_same(found["a"][...], torch.from_numpy(array))
    assert_same(nd.to_numpy(found["a"]), array)
    assert_same(nd.read(f"{s3}/d/a.npy", to="numpy", name="x")["x"][5:9:2, 3], array[5:9:2, 3])


def test_slice_reads_little_more_than_itself(server, s3):
    array = numbers(2000, 1000)
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.npy", npy(array))
    with server.counted() as requests:
        found = nd.read(f"{s3}/a.npy", to="numpy")
        assert found["a"].shape == (2000, 1000)
        assert sum(each.nbytes for each in requests) <= 300_000, "of the header"
    with server.counted() as requests:
        assert_same(found["a"][700:710], array[700:710])
        assert [each.method for each in requests] == ["GET"]
        assert requests[0].nbytes < 400_000


def test_large_array_is_read_in_several_requests_and_once(server, s3):
    array = numbers(5 << 20)
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.npy", npy(array))
    found = nd.read(f"{s3}/a.npy", to="numpy")["a"]
    with server.counted() as requests:
        assert_same(found[...], array)
    assert len(requests) == 5
    assert sum(each.nbytes for each in requests) == array.nbytes


def test_small_object_is_one_request(server, s3):
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.safetensors", safetensors.numpy.save({"x": numbers(9), "y": numbers(3)}))
    with server.counted() as requests:
        found = nd.read(f"{s3}/a.safetensors", to="numpy")
        assert_same(found["x"][...], numbers(9))
        assert_same(found["y"][1:], numbers(3)[1:])
    assert [each.method for each in requests] == ["HEAD", "GET"]


def test_columns_are_turned_into_rows(s3, tmp_path):
    array = np.asfortranarray(numbers(300, 40))
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.npy", npy(array))
    nd.convert_file(f"{s3}/a.npy", tmp_path / "a.safetensors", verify=True)
    assert_same(safetensors.numpy.load_file(tmp_path / "a.safetensors")["a"], np.ascontiguousarray(array))


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: raw[:50], lambda raw: b"", lambda raw: raw + b"0"]
)
def test_truncated_object_is_refused_by_its_url(damage, s3):
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.npy", damage(npy(numbers(9))))
    with pytest.raises(nd.FormatError, match=rf"'{s3}/a\.npy'"):
        nd.read(f"{s3}/a.npy")


def test_object_that_shrinks_while_it_is_read_is_noticed(s3):
    files = fsspec.filesystem("s3")
    files.pipe_file(f"{s3}/a.npy", npy(numbers(1 << 18)))
    found = nd.read(f"{s3}/a.npy")["a"]
    files.pipe_file(f"{s3}/a.npy", npy(numbers(1 << 17)))
    with pytest.raises((nd.FormatError, OSError), match=rf"{s3}/a\.npy"):
        found[...]


def test_missing_object_bucket_and_driver_are_told_apart(s3):
    with pytest.raises(nd.FormatError, match=rf"'{s3}/no\.npy': no such file"):
        nd.read(f"{s3}/no.npy")
    with pytest.raises(nd.FormatError, match=r"'s3://no-such-bucket/a\.npy': no such file"):
        nd.read("s3://no-such-bucket/a.npy")
    with pytest.raises(nd.FormatError, match="Protocol not known: nonsense"):
        nd.read("nonsense://a/b.npy")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_missing_driver_is_named_with_what_to_install():
    with pytest.raises(nd.MissingDependencyError, match=r"'gs://b/a\.npy' needs a driver") as error:
        nd.read("gs://b/a.npy")
    assert error.value.hint == "pip install gcsfs"


def test_without_fsspec_the_error_says_what_to_install():
    code = """
import sys
sys.modules["fsspec"] = None
import ndtorch as nd
try:
    nd.read("s3://b/a.npy")
except nd.MissingDependencyError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "pip install fsspec\n"


def test_looking_at_a_url_takes_no_torch(memory):
    code = """
import sys, ndtorch, fsspec
from ndtorch.files import open_file
import io, numpy as np
stream = io.BytesIO(); np.save(stream, np.ones(3))
fsspec.filesystem("memory").pipe_file("/a.npy", stream.getvalue())
print(open_file("memory://a.npy")["a"], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "float64[3] False\n"


def test_libraries_read_an_object_as_a_file(server, s3):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["group/x"] = numbers(1 << 17)
        file.create_dataset("y", data=numbers(1 << 20), chunks=(1 << 16,))
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.h5", stream.getvalue())
    storage = remote.RemoteStorage(f"{s3}/a.h5")
    with server.counted() as requests, storage.open_binary() as opened, h5py.File(opened, "r") as file:
        assert_same(file["group/x"][...], numbers(1 << 17))
        assert_same(file["y"][:9], numbers(1 << 20)[:9])
    assert sum(each.nbytes for each in requests) < 4 << 20, "of 9 MB"
    with storage.open_binary() as opened:
        assert opened.seek(-3, os.SEEK_END) == storage.size - 3
        assert opened.read() == stream.getvalue()[-3:]
        assert opened.read(1) == b""


# --- folders


@pytest.fixture(params=["s3", "memory"])
def folder(request) -> str:
    url = f"{request.getfixturevalue(request.param)}/data"
    files = fsspec.core.url_to_fs(url)[0]
    for number, name in enumerate(("a", "b", "run1/a", "run2/deep/a")):
        files.pipe_file(f"{url}/{name}.npy", npy(np.array([number])))
    files.pipe_file(f"{url}/m.safetensors", safetensors.numpy.save({"w": np.ones(2)}))
    files.pipe_file(f"{url}/.hidden.npy", b"?")
    files.pipe_file(f"{url}/notes.txt", b"?")
    return url


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a", "b", "m/w", "run1/a", "run2/deep/a"]),
        ("/", ["a", "b", "m/w", "run1/a", "run2/deep/a"]),
        ("/*.npy", ["a", "b"]),
        ("/run*/a.npy", ["run1/a"]),
        ("/**/a.npy", ["a", "run1/a", "run2/deep/a"]),
        ("/[!a]*", ["b", "m/w"]),
    ],
)
def test_remote_folders_and_patterns_are_as_local_ones(pattern, expected, folder):
    found = nd.read(f"{folder}{pattern}", to="numpy")
    assert list(found) == expected
    assert [array[...].tolist() for name, array in found.items() if name.endswith("a")][:1] == (
        [[0]] if "a" in expected else [] if "run1/a" not in expected else [[2]]
    )


@pytest.mark.parametrize("kind", ["NoCredentialsError", "PartialCredentialsError"])
def test_missing_credentials_name_the_variables_that_give_some(memory, kind, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise getattr(botocore.exceptions, kind)(provider="env", cred_var="AWS_SECRET_ACCESS_KEY")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", refuse)
    with pytest.raises(OSError, match=kind) as caught:
        nd.read(f"{memory}/x.npy")
    (note,) = caught.value.__notes__
    assert note.startswith("Hint: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment")


def test_remote_folder_with_nothing_known_is_refused(memory):
    fsspec.filesystem("memory").pipe_file("/folder/notes.txt", b"?")
    for source in (memory, f"{memory}/*.npy"):
        with pytest.raises(nd.FormatError, match="has no file of arrays"):
            nd.read(source)


def test_listing_a_bucket_reads_no_file_of_one_array(server, s3):
    files = fsspec.filesystem("s3")
    for number in range(10):
        files.pipe_file(f"{s3}/{number}.npy", npy(np.array([number])))
    with server.counted() as requests:
        found = nd.read(f"{s3}/*.npy", to="numpy")
        assert len(found) == 10
        assert all("list-type" in each.query or each.method == "HEAD" for each in requests)
    with server.counted() as requests:
        assert found["7"][...].tolist() == [7]
    assert [each.method for each in requests] == ["GET"]


# --- writing


@pytest.mark.parametrize("place", ["s3", "memory"])
def test_what_is_written_is_what_numpy_loads(place, request):
    url, array = f"{request.getfixturevalue(place)}/x/a.npy", numbers(30, 4)
    nd.write(url, array, verify=True)
    assert_same(np.load(io.BytesIO(fsspec.core.url_to_fs(url)[0].cat_file(url))), array)


@pytest.mark.parametrize("place", ["s3", "memory"])
def test_existing_object_is_replaced_only_when_that_is_asked_for(place, request):
    url = f"{request.getfixturevalue(place)}/a.npy"
    nd.write(url, np.zeros(3))
    with pytest.raises(nd.FormatError, match=rf"'{url}' exists") as error:
        nd.write(url, np.ones(3))
    assert error.value.hint == "overwrite=True (--overwrite) replaces it, all or nothing"
    assert_same(nd.read(url, to="numpy")["a"][...], np.zeros(3))
    nd.write(url, np.ones(5), overwrite=True, verify=True)
    assert_same(nd.read(url, to="numpy")["a"][...], np.ones(5))


def test_upload_in_parts_is_whole(server, s3):
    array = numbers(5 << 20)
    with server.counted() as requests:
        nd.write(f"{s3}/a.npy", array, verify=True)
    assert sum(each.method == "PUT" for each in requests) >= 2, "parts"
    assert objects(s3) == {"a.npy": npy(array)}
    assert uploads(server, s3) == []


@pytest.mark.parametrize("format", FORMATS_BOTH_WAYS)
@pytest.mark.parametrize("place", ["s3", "memory"])
def test_every_format_goes_up_and_comes_down(place, format, request, tmp_path):
    home = request.getfixturevalue(place)
    array = numbers(40, 3).astype("float32")
    np.save(tmp_path / "x.npy", array)
    nd.convert_file(tmp_path / "x.npy", f"{home}/x.{format}", verify=True)
    assert_same(nd.read(f"{home}/x.{format}", to="numpy")["x"][...], array)
    assert_same(nd.read(f"{home}/x.{format}", to="numpy")["x"][3:5, 1], array[3:5, 1])
    nd.convert_file(f"{home}/x.{format}", tmp_path / "back.npy", verify=True)
    assert_same(np.load(tmp_path / "back.npy"), array)
    nd.convert_file(f"{home}/x.{format}", f"{home}/y.npy", verify=True)
    assert_same(nd.read(f"{home}/y.npy", to="numpy")["y"][...], array)


def test_pictures_are_read_from_urls(s3):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.png", stream.getvalue())
    assert_same(nd.read(f"{s3}/a.png", to="numpy")["a"][...], pixels)


def test_name_of_one_array_is_the_stem_of_the_url():
    assert stem("s3://bucket/d/a.b.npy") == "a.b"
    assert stem("https://host/d/a%20b.npy?token=x/y.npy#part") == "a b"
    assert stem("simplecache::s3://bucket/a.npy") == "a"
    assert stem("zip://d/x.npy::s3://bucket/a.zip") == "x"
    assert stem("s3://bucket/") == "bucket"


def test_cast_that_fails_in_the_middle_leaves_the_old_object_and_no_parts(server, s3):
    nd.write(f"{s3}/a.npy", np.zeros(3))
    array = numbers(3 * BLOCK // 8)
    array[:] = np.arange(array.size)
    array[-1] = 0.5
    with pytest.raises(nd.LossyCastError):
        nd.write(f"{s3}/a.npy", array, dtype="int64", casting="exact", overwrite=True)
    assert objects(s3) == {"a.npy": npy(np.zeros(3))}
    assert uploads(server, s3) == []


@pytest.mark.parametrize("failing", ["uploadId", "uploads", ""])
def test_upload_that_the_server_refuses_leaves_nothing(failing, server, s3):
    server.refuse = lambda request: request.method in ("PUT", "POST") and failing in request.query
    with pytest.raises(PermissionError, match=rf"'{s3}/a\.npy'") as error:
        nd.write(f"{s3}/a.npy", numbers(5 << 20))
    assert SECRET not in str(error.value)
    server.refuse = lambda request: False
    assert objects(s3) == {}
    assert uploads(server, s3) == []


def test_last_part_that_is_refused_leaves_nothing(server, s3):
    server.refuse = lambda request: "partNumber=2" in request.query
    with pytest.raises(PermissionError):
        nd.write(f"{s3}/a.npy", numbers(5 << 20))
    assert objects(s3) == {}
    assert uploads(server, s3) == []


WRITES = """
import sys, numpy as np, torch, ndtorch as nd
print("ready", flush=True)
nd.write(sys.argv[1], np.ones(8 << 20), overwrite=True)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_killed_upload_leaves_the_old_object(name, server, s3):
    nd.write(f"{s3}/a.npy", np.zeros(3))
    keys = {"FSSPEC_S3_ENDPOINT_URL": server.url, "FSSPEC_S3_KEY": "somebody", "FSSPEC_S3_SECRET": SECRET}
    command = [sys.executable, "-c", WRITES, f"{s3}/a.npy"]
    process = subprocess.Popen(command, env=os.environ | keys, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def kill(request: Request) -> bool:
        if "partNumber=2" in request.query:
            process.send_signal(signal.Signals[name])
        return False

    server.refuse = kill
    _, complaint = process.communicate(timeout=120)
    assert process.returncode != 0
    assert objects(s3) == {"a.npy": npy(np.zeros(3))}
    if name == "SIGINT":
        assert b"KeyboardInterrupt" in complaint
        assert uploads(server, s3) == []


def test_memory_keeps_the_old_object_when_a_write_fails(memory):
    nd.write(f"{memory}/a.npy", np.zeros(3))
    array = np.arange(3 * BLOCK // 8, dtype=float)
    array[-1] = 0.5
    with pytest.raises(nd.LossyCastError):
        nd.write(f"{memory}/a.npy", array, dtype="int64", casting="exact", overwrite=True)
    assert objects(memory) == {"a.npy": npy(np.zeros(3))}


def test_verification_reads_back_what_is_there_and_removes_what_differs(s3, monkeypatch):
    cat = remote.RemoteStorage._fetch
    monkeypatch.setattr(remote.RemoteStorage, "_fetch", lambda *args: cat(*args).replace(b"\1\1\1\1", b"\1\1\1\0"))
    with pytest.raises(nd.FormatError, match="'a' reads back different from what was written"):
        nd.write(f"{s3}/a.npy", np.full(9, 1, np.int8), verify=True)
    assert objects(s3) == {}


def store(folder: Path) -> Path:
    """What a zarr store of one array in a group looks like."""
    for name in ("zarr.json", "x/zarr.json", "x/c/0/0", "x/c/0/1", "x/c/1/0"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_folder_is_uploaded_with_what_makes_it_a_store_last(server, s3, tmp_path):
    with server.counted() as requests:
        upload_folder(store(tmp_path), f"{s3}/a.zarr")
    names = [each.path.partition("a.zarr/")[2] for each in requests if each.method == "PUT" and "a.zarr" in each.path]
    in_order = list(dict.fromkeys(names))
    assert (set(in_order[:3]), in_order[3:]) == ({"x/c/0/0", "x/c/0/1", "x/c/1/0"}, ["x/zarr.json", "zarr.json"])
    assert objects(f"{s3}/a.zarr") == {name: name.encode() for name in names}


def test_folder_whose_upload_fails_is_removed(server, s3, tmp_path):
    server.refuse = lambda request: request.method in ("PUT", "POST") and "x/zarr.json" in request.path
    with pytest.raises(PermissionError):
        upload_folder(store(tmp_path), f"{s3}/a.zarr")
    assert objects(s3) == {}


def test_remote_store_is_never_replaced(memory):
    fsspec.filesystem("memory").pipe_file("/folder/a.zarr/zarr.json", b"{}")
    with pytest.raises(nd.FormatError, match="cannot be replaced in one step"):
        nd.write(f"{memory}/a.zarr", {"x": np.ones(3)}, overwrite=True)
    with pytest.raises(nd.FormatError, match=r"a\.zarr' exists"):
        nd.write(f"{memory}/a.zarr", {"x": np.ones(3)})


def test_nothing_is_left_in_the_folder_for_temporary_files(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    abandoned = tmp_path / ".ndtorch-killed.tmp"
    abandoned.mkdir()
    nd.write(f"{memory}/a.npy", numbers(9))
    assert os.listdir(tmp_path) == []


def test_source_and_target_may_not_be_one_object(memory):
    nd.write(f"{memory}/a.npy", np.zeros(3))
    with pytest.raises(nd.FormatError, match="source and target are the same file"):
        nd.convert_file(f"{memory}/a.npy", f"{memory}/a.npy", overwrite=True)


def test_folder_of_objects_is_no_target(memory):
    nd.write(f"{memory}/d.npy/a.npy", np.zeros(3))
    with pytest.raises(nd.FormatError, match=r"d\.npy': it is a folder"):
        nd.write(f"{memory}/d.npy", np.zeros(3), overwrite=True)


# --- file:// and chains


def test_url_of_a_local_file_is_that_file(tmp_path):
    array = numbers(9)
    nd.write(f"file://{tmp_path}/a.npy", array)
    found = nd.read(f"file://{tmp_path}/a.npy", to="numpy")["a"]
    assert found.stored.map() is not None, "it is mapped as any other"
    assert_same(found[...], array)
    assert list(nd.read(f"file://{tmp_path}")) == ["a"]
    nd.convert_file(f"file://{tmp_path}/a.npy", f"file://{tmp_path}/b.safetensors", verify=True)
    assert_same(safetensors.numpy.load_file(tmp_path / "b.safetensors")["a"], array)
    with pytest.raises(nd.FormatError, match="same file"):
        nd.convert_file(f"file://{tmp_path}/a.npy", tmp_path / "a.npy", overwrite=True)


def test_chains_are_read_through_their_caches_and_archives(server, s3, tmp_path):
    array = numbers(1 << 18)
    fsspec.filesystem("s3").pipe_file(f"{s3}/a.npy", npy(array))
    with server.counted() as requests:
        found = nd.read(f"simplecache::{s3}/a.npy", to="numpy")["a"]
        assert_same(found[...], array)
        assert_same(found[5:9], array[5:9])
    assert sum(each.nbytes for each in requests) == len(npy(array)), "fetched once"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inner/b.npy", npy(array))
    assert_same(nd.read(f"zip://inner/b.npy::file://{tmp_path}/x.zip", to="numpy")["b"][...], array)


# --- https


def test_file_of_a_web_server_is_read_by_ranges():
    array = numbers(1 << 18)
    with WebServer({"/d/a.npy": npy(array)}) as web:
        found = nd.read(f"{web.url}/d/a.npy?token=1", to="numpy")
        assert list(found) == ["a"]
        web.sent.clear()
        assert_same(found["a"][1000:1010], array[1000:1010])
        assert sum(web.sent) <= 300_000
        assert_same(found["a"][...], array)


@pytest.mark.parametrize("options", [{"ranges": False}, {"says_length": False}], ids=str)
def test_web_server_that_serves_only_whole_files_is_refused_with_the_way_around(options, tmp_path):
    array = numbers(1 << 18)
    with WebServer({"/a.npy": npy(array)}, **options) as web:
        with pytest.raises(nd.FormatError, match="cannot be read in parts: its server") as error:
            nd.read(f"{web.url}/a.npy")
        assert error.value.hint == f"'simplecache::{web.url}/a.npy' fetches it once, whole"
        if "ranges" in options:
            assert_same(nd.read(f"simplecache::{web.url}/a.npy", to="numpy")["a"][...], array)


def test_web_server_is_never_written_to():
    with WebServer({}) as web:
        with pytest.raises(nd.FormatError, match="what is behind http is read only"):
            nd.write(f"{web.url}/a.npy", np.ones(3))
        with pytest.raises(nd.FormatError, match="no such file"):
            nd.read(f"{web.url}/a.npy")


# --- secrets


def test_no_error_tells_what_is_secret_in_a_url():
    with WebServer({"/bad.npy": b"?", "/a": b"?"}) as web:
        host = web.url.removeprefix("http://")
        for path in ("bad.npy", "a", "missing.npy", "bad.xyz"):
            url = f"http://user:{SECRET}@{host}/{path}?signature={SECRET}#{SECRET}"
            with pytest.raises((nd.NdtorchError, OSError)) as error:
                nd.read(url)
            chain = [error.value, error.value.__cause__]
            assert SECRET not in "".join(map(str, chain)), path
            assert path in str(error.value)
            with pytest.raises(nd.FormatError) as error:
                nd.write(url.replace(path, "a.npy"), np.ones(3))
            assert SECRET not in str(error.value)
    with pytest.raises((nd.NdtorchError, OSError)) as error:
        nd.read(f"http://user:{SECRET}@127.0.0.1:9/a.npy?signature={SECRET}")
    assert SECRET not in str(error.value)


def test_keys_are_not_told_by_what_a_driver_says(server, s3):
    server.refuse = lambda request: True
    with pytest.raises(PermissionError, match=rf"'{s3}/a\.npy'") as error:
        nd.read(f"{s3}/a.npy")
    assert SECRET not in str(error.value)
    assert "somebody" not in str(error.value)
