"""New files and folders that appear under their names whole and safe on the disk, or not at all.

They are written beside the target, under a name that is made from its name, and renamed. Whoever writes holds a lock
on what it writes, so that the next run can tell what a killed one left behind, and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .._errors import FormatError, NdtorchError

_MAX_WRITERS = 100  # of one target at a time
_NO_REPLACE, _EXCHANGE = 1, 2  # RENAME_NOREPLACE and RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100
_FEW = 8  # files that are synced one by one
_swept: set[str] = set()


@contextmanager
def new_file(target: Path, *, overwrite: bool = True) -> Iterator[tuple[Path, int]]:
    """Give the path and a descriptor of a file that is going to be the target when everything in it is on the disk.

    Any failure removes it. A target that is a link stays one, one that exists gives its permissions. Without
    ``overwrite`` one that exists at the end, because somebody else has written it meanwhile, is an error.
    """
    place = Path(os.path.realpath(target))
    with _reported_as(target):
        temporary, descriptor = _claim(place, is_folder=False)
        with _gone_on_error(temporary, descriptor):
            with suppress(FileNotFoundError):
                # Not the bits that lend the owner's rights: the owner may be another by now.
                os.fchmod(descriptor, place.stat().st_mode & 0o777)
            yield temporary, descriptor
            os.fsync(descriptor)
            if overwrite or not _renamed(temporary, place, _NO_REPLACE):
                _refuse_existing(target, place, overwrite=overwrite)
                os.replace(temporary, place)
            sync_folder(place.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder that is going to be the target when everything in it is on the disk.

    A folder that exists is exchanged in one step, where the system can do that, and then removed.
    """
    place = Path(os.path.realpath(target))
    with _reported_as(target):
        temporary, descriptor = _claim(place, is_folder=True)
        try:
            yield temporary
            with suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(place.stat().st_mode))
            _sync_tree(temporary)
            move_folder(temporary, place)
            sync_folder(place.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)


@contextmanager
def scratch_folder(home: Path | None = None) -> Iterator[Path]:
    """Give a folder of our own for what is on its way elsewhere; gone at the end, after a kill with the next run.

    Args:
        home: Where it is made, such as on the disk that its files are renamed on; else where temporary files are.
    """
    home = home or Path(tempfile.gettempdir())
    _sweep(home)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=".ndtorch-", suffix=".tmp", dir=home))  # nobody else may look into it
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _lock(descriptor) is not False and _is_at(descriptor, folder):
                break
            os.close(descriptor)  # somebody took it for abandoned before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def put_file(target: Path, content: bytes, home: Path) -> None:
    """Write a small file, whole or not at all; one that exists is replaced. Its name lasts with `sync_folder`.

    Args:
        target: The file.
        content: All that is in it.
        home: A folder on the same disk, where it is until then, and from where `sweep` removes what a kill leaves.
    """
    os.makedirs(target.parent, exist_ok=True)
    os.makedirs(home, exist_ok=True)
    descriptor = None
    while descriptor is None:
        temporary = home / f".ndtorch-{uuid.uuid4().hex}.tmp"
        descriptor = _create(temporary, is_folder=False)
    with _gone_on_error(temporary, descriptor):
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
        os.replace(temporary, target)


@contextmanager
def _gone_on_error(temporary: Path, descriptor: int) -> Iterator[None]:
    """Close a file at the end; what was written under a temporary name is removed by any failure."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def _reported_as(target: Path) -> Iterator[None]:
    """Errors of the system name the target, which the caller knows, and not what is written beside it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NdtorchError):
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), os.fspath(target)) from error


# --- what is written beside the target


def _claim(place: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Make a file or folder that is ours alone, and remove what killed runs have left."""
    _sweep(place.parent)
    key = hashlib.blake2s(os.fsencode(place.name), digest_size=8).hexdigest()
    for number in range(_MAX_WRITERS):
        temporary = place.with_name(f".ndtorch-{key}-{number}.tmp")
        remove_if_abandoned(temporary)
        descriptor = _create(temporary, is_folder=is_folder)
        if descriptor is not None:
            return temporary, descriptor
    raise FormatError("write", f"{_MAX_WRITERS} others are writing {os.fspath(place)!r}")


def is_temporary(path: str) -> bool:
    """Whether a path is one of those that are going to be another."""
    name = os.path.basename(path)
    return name.startswith(".ndtorch-") and name.endswith(".tmp")


def _create(path: Path, *, is_folder: bool) -> int | None:
    """Create and lock; ``None`` where somebody else has it."""
    try:
        if is_folder:
            os.mkdir(path)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    except FileExistsError:
        return None
    if _lock(descriptor) is not False and _is_at(descriptor, path):
        return descriptor
    os.close(descriptor)  # somebody took it for abandoned before it was locked
    return None


def _sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder, once for each process."""
    if str(folder) not in _swept:
        sweep(folder)
        _swept.add(str(folder))


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder, and nothing that is still being written."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name):
                remove_if_abandoned(Path(entry.path))


def remove_if_abandoned(path: Path) -> None:
    """Remove a temporary file or folder that no living process holds."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        if _lock(descriptor) and _is_at(descriptor, path):
            with suppress(OSError):
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
    finally:
        os.close(descriptor)


def hold(descriptor: int, path: Path) -> bool | None:
    """Lock a file until its descriptor is closed, or this process ends.

    Returns:
        Whether it is ours now, and still under its name; ``None`` where the file system has no locks.
    """
    is_ours = _lock(descriptor)
    return is_ours and _is_at(descriptor, path)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock is ours now; ``None`` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    return False


# --- making it last


def move_folder(temporary: Path, place: Path) -> None:
    """Give a folder a name; one that has it is exchanged in one step, where the system can do that, and removed."""
    if not place.exists():
        os.rename(temporary, place)
        return
    if not _exchange(temporary, place):  # for a moment there is none: better than a half of each
        # Not a name that the next run would sweep: should this one be killed here, it is all that there is.
        aside = temporary.with_name(temporary.name.replace(".tmp", ".old"))
        os.rename(place, aside)
        try:
            os.rename(temporary, place)
        except BaseException:
            os.rename(aside, place)
            raise
        temporary = aside
    shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(target: Path, place: Path, *, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(place):
        hint = "overwrite=True (--overwrite) replaces it"
        raise FormatError("write", f"{os.fspath(target)!r} exists: somebody else has written it meanwhile", hint=hint)


def _exchange(one: Path, other: Path) -> bool:
    return _renamed(one, other, _EXCHANGE)


def _renamed(one: Path, other: Path, flags: int) -> bool:
    """Rename as plain renaming cannot; whether that was done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return int(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags)) == 0


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))


def sync_all(paths: Sequence[Path]) -> None:
    """Have the bytes of files, and of all files in folders, on the disk; many of one disk at once.

    They have to be on one file system.
    """
    if len(paths) > _FEW and _synced_at_once(paths[0]):
        return
    for path in paths:
        if path.is_dir():
            _sync_tree(path)
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _synced_at_once(path: Path) -> bool:
    """Write all of a file system to its disk, which takes as long as a few files do; whether the system can."""
    try:
        sync = ctypes.CDLL(None, use_errno=True).syncfs
    except (AttributeError, OSError):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return int(sync(descriptor)) == 0
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last; file systems that cannot are left to themselves."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
