"""Whether a failure is the machine's: it has no more of what every work needs.

Such a failure says nothing about what was being worked on, which may be tried again.
"""

from __future__ import annotations

import errno

_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC))


def is_exhaustion(error: BaseException) -> bool:
    """Whether memory, descriptors or room on the disk have run out."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _ERRORS)
