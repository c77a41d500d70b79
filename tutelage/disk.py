"""What makes files survive a power cut, and full disks told from other faults."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def sync_folder(folder: Path) -> None:
    """Make renames in a folder, and new files, durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether what was to be written had no room."""
    return isinstance(error, OSError) and error.errno in FULL
