"""Writing that can be broken off anywhere: files that appear when they are complete, one builder at a time."""

import errno
import fcntl
import io
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hoi_lightning.errors import InputError

_FULL = {
    errno.ENOSPC: "free some space or choose a larger disk",
    errno.EDQUOT: "free some of your quota or choose another disk",
    errno.EFBIG: "lift the limit on the size of files (`ulimit -f unlimited`)",
}
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


class Replacing:
    """A file that takes its name when it is closed without an error; a broken-off one leaves nothing behind.

    Args:
        path: its name; what bears it now stays until then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")

    def __enter__(self) -> io.BufferedWriter:
        """Open the temporary file."""
        self.file = self.temporary.open("wb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Rename it, or remove it after an error."""
        try:
            with self.file:  # closing writes the rest, which may be what the disk has no room for
                if kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                os.replace(self.temporary, self.path)
        except OSError:
            if kind is None:
                raise
        finally:
            self.temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that appears when it is complete."""
    with Replacing(path) as file:
        file.write(text.encode())


@contextmanager
def named_errors(out: Path) -> Iterator[None]:
    """Turn a full disk, and a folder that must not be written, into one line.

    Raises:
        InputError: instead of the `OSError`; any other passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(out).free / 1e9
            raise InputError(
                f"--out {out}: {error.strerror} ({free:.1f} GB free); {_FULL[error.errno]}, then give the same command "
                "again: what is finished is kept"
            ) from None
        place = Path(error.filename or "/dev/null")
        if error.errno in _FORBIDDEN and (out.is_relative_to(place) or place.is_relative_to(out)):
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
        raise


@contextmanager
def locked(out: Path, path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock file, which dies with the process and names it.

    Args:
        out: what the lock guards, for the message.
        path: the lock file; removed at the end unless shared.
        shared: beside other shared holders, not beside an exclusive one.

    Raises:
        InputError: somebody else holds it, or the file system has no locks.
    """
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"--out {out}: {_holder(file.read())} or choose another folder") from None
        except OSError as error:
            raise InputError(
                f"--out {out}: its file system has no locks ({error.strerror}); mount it with them or choose another"
            ) from None
        try:
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        except FileNotFoundError:
            pass  # its last holder has just removed it
        file.close()
    try:
        file.truncate(0)
        if not shared:
            file.write(f"{os.getpid()} {socket.gethostname()}")
        file.flush()
        yield
    finally:
        if not shared:
            path.unlink(missing_ok=True)
        file.close()


def _holder(record: str) -> str:
    pid, _, host = record.partition(" ")
    if not host:
        return "shares of it are being built (--shard-range); wait for them"
    return f"process {pid} on {host} is building there; wait for it, stop it (`kill {pid}` on {host})"
