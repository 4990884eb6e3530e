"""Files that others share: the umask says who may, and no library narrows it."""

from __future__ import annotations

import stat
from pathlib import Path


def shared(*paths: Path) -> None:
    """Whoever may enter a folder may read its files, and who may write there may write to them.

    safetensors makes files that their owner alone may read. A file with further names elsewhere stays as it is.
    """
    for path in paths:
        found = path.lstat()
        mode = stat.S_IMODE(found.st_mode | path.parent.stat().st_mode & 0o666)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and mode != stat.S_IMODE(found.st_mode):
            path.chmod(mode)
