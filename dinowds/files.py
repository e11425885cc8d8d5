"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dinowds.errors import OutputError

TEMPORARY_SUFFIX = ".tmp"

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What `flock` fails with on a file system that has no locks."""

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_AGAIN = "give the same command again to go on"
_NO_RIGHT = "let this user write there, or give another place"
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO), f"make room and {_AGAIN}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _NO_RIGHT),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), f"raise the limit of open files ('ulimit -n') and {_AGAIN}"),
}


def cache_folder() -> Path:
    """Where this host keeps what it can get again; the folder may not exist yet.

    $DINOWDS_CACHE, else the job's own disk ($SLURM_TMPDIR), else the user's cache; one of temporary files for a user
    without a home.
    """
    if own := os.environ.get("DINOWDS_CACHE"):
        return Path(own)
    if job := os.environ.get("SLURM_TMPDIR"):
        return Path(job) / "dinowds"
    if users := os.environ.get("XDG_CACHE_HOME"):
        return Path(users) / "dinowds"
    try:
        return Path.home() / ".cache" / "dinowds"
    except RuntimeError:  # as in a container, under a number that has no name
        return Path(tempfile.gettempdir()) / f"dinowds-{os.getuid()}"


def advice(error: OSError) -> str:
    """What to do where the system refused something, with '; ' before it; '' where nothing can be said."""
    said = _ADVICE.get(error.errno or 0)
    return f"; {said}" if said else ""


def reading_advice(error: OSError) -> str:
    """As `advice`, where it was an input that the system refused."""
    return advice(error) if error.errno in (errno.EMFILE, errno.ENFILE) else ""


@contextmanager
def output_errors(place: Path | str) -> Iterator[None]:
    """Errors of the system that no input has caused are about the output: an `OutputError` that names it.

    But for BlockingIOError, of a lock that another process holds: what that means, the caller says.
    """
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise OutputError(f"{place}: cannot be written ({error.strerror or error}){advice(error)}") from None


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside `path`; on success fsync it and rename it to `path`, on failure remove it.

    The folder is fsynced after the rename, so that a finished file survives a power cut.
    """
    temporary, file = _new_temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """`atomic_write` of content that is at hand."""
    with atomic_write(path) as file:
        file.write(content)


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no one has, for what is to become `path`."""
    # At random: threads, and hosts or containers that share the folder, have process numbers in common.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


def remove_abandoned(path: Path, remove: Callable[[Path], object] = Path.unlink) -> None:
    """Remove what killed processes have left of `temporary_path(path)`. What a living one has there is locked.

    Nothing is removed where the file system has no locks.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}")
    with suppress(OSError):  # the folder is missing, or cannot be listed; a file cannot be removed
        for left in [other for other in path.parent.iterdir() if name.fullmatch(other.name)]:
            remove_unlocked(left, remove)


def remove_unlocked(path: Path, remove: Callable[[Path], object] = Path.unlink) -> None:
    """Remove a temporary file, unless a living process has it, or the file system has no locks to tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        if try_lock(descriptor):
            remove(path)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed; never waits.

    Returns:
        False where another process holds it, None where the file system has no such locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in (*NO_LOCKS, errno.EBADF):  # of a folder, over NFS
            return None
        raise
    return True


def _new_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file that stays locked as long as it is open."""
    while True:
        temporary = temporary_path(path)
        file = open(temporary, "xb")  # noqa: SIM115
        try:
            held = try_lock(file.fileno())
            if held is None or (held and os.path.samestat(os.fstat(file.fileno()), temporary.stat())):
                return temporary, file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        file.close()  # taken for abandoned in the instant before it was locked


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def lock_file(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`, which is made if it is missing; never waits.

    Yields whether there is a lock: False (and a logged warning) on a file system that has none. The holder may unlink
    the file. The lock ends with the process that holds it, however that ends.

    Raises:
        BlockingIOError: another process holds it, or has just let go and removed the file.
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool | None:
    """Whether some process holds `lock_file(path)`; None where the file system has no locks, or does not let us look.

    Looking takes a shared lock for an instant, in which `lock_file` of another process fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in _HELD else None
    finally:
        os.close(descriptor)
    return False


@contextmanager
def waiting_lock(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on the file `path`, which is made if it is missing; waits for it. Yields its descriptor.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
    """
    descriptor = open_unforked(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        close_unforked(descriptor)


_unforked: set[int] = set()
_forking = threading.RLock()


def open_unforked(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """A descriptor that forked children do not get; for reading and writing, of a new file where there is none.

    A child would go on holding a lock on it when this process lets go, or is killed.
    """
    with _forking:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        _unforked.add(descriptor)
    return descriptor


def close_unforked(descriptor: int) -> None:
    """Close what `open_unforked` gave, which lets go of a lock on it."""
    with _forking:
        _unforked.discard(descriptor)
        os.close(descriptor)


def _close_in_child() -> None:
    while _unforked:
        os.close(_unforked.pop())
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child)


def open_regular(path: str | Path) -> int:
    """A descriptor for reading a file. OSError for what is none, such as a pipe, on which opening would wait."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | Path) -> bytes:
    """A file's bytes. OSError for what is none, such as a device that never ends."""
    with open(open_regular(path), "rb") as file:
        return file.read()


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(errno.EWOULDBLOCK, "another process holds the lock", str(path)) from None
        if error.errno not in NO_LOCKS:
            raise
        logging.getLogger(__name__).warning(
            "%s: this file system has no locks (%s); see to it that no other process writes here", path, error.strerror
        )
        return False
    try:
        is_same = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process has just removed the lock", str(path))
    return True


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Only for a folder that no one else writes to."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def sha256_of(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """Hex sha256 of a regular file's bytes. `between` is called after each MiB; what it raises ends the reading."""
    with open(open_regular(path), "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
            between()
    return digest.hexdigest()


def format_bytes(count: int) -> str:
    """1536 → '1.5 KiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
