"""What a run directory's files are called, and the lock that keeps them to one process at a time.

It is flock(2) on a file of its own, which is removed when the lock is given up and holds the
process's id meanwhile. (The filelock package locks likewise, but cannot name the holder.) Over NFS
Linux turns it into a lock of the file server's, so that it holds between machines. Where a file
system or, as on Windows, Python has no such locks, there is none: the log warns, and the work goes
on as if alone.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)

_HELD = (errno.EAGAIN, errno.EACCES)
_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

RUN_FILE = "run.json"
LINES_FILE = "journal.jsonl"
SUMMARY_FILE = "summary.json"
EVALUATION_FILE = "evaluation.json"
TENSOR_FOLDER = "tensors"
CHECKPOINT = "checkpoint"
ADAPTER_FOLDER = "adapter"
# Held by the process that writes the others; not there when none does.
LOCK_FILE = "lock"


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Keeps every other holder of the lock file `path` away from `what`.

    Raises:
        InUse: there is one; the message has its process id.
        OSError: the lock file cannot be made.
    """
    descriptor = _locked(path, what)
    try:
        yield
    finally:
        # While it is still locked: whoever opened it meanwhile sees that it is gone.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def holder(path: Path) -> str | None:
    """Who holds the lock file `path`, in words; None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _flock(descriptor) else _in_words(descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path, what: str) -> int:
    """A descriptor that holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _flock(descriptor):
                # Not above: completion needs the names alone.
                from craft_client.exceptions import InUse

                raise InUse(
                    f"{_in_words(descriptor)} is at {what}.",
                    remedy="Wait until it ends, or stop it.",
                )
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.truncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Its last holder has removed it in between.
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    """Whether the lock is now this descriptor's; so it is where there are no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _HELD:
            return False
        if isinstance(error, OSError) and error.errno not in _UNKNOWN:
            raise
        _log.warning("no file locks here (%s): keep other processes away yourself", error)
    return True


def _in_words(descriptor: int) -> str:
    pid, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").strip().partition(" ")
    if not pid:
        return "Another process"
    if host != socket.gethostname():
        return f"Another process (pid {pid} on {host})"
    return "This process" if int(pid) == os.getpid() else f"Another process (pid {pid})"
