"""Changes to files of a folder that may only be read, such as a stick with its switch set."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge_runtime.folder import write_durable
from schemas.bundles import Parcel

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def remove(path: Path) -> bool:
    """Delete a file; False if that is not allowed. Raises OSError."""
    return allowed(partial(path.unlink, missing_ok=True))


def rewrite(path: Path, parcel: Parcel) -> bool:
    """Put a fragment in the place of a file; False if that is not allowed. Raises OSError."""
    return allowed(partial(write_durable, path, parcel.write(), 0o644))


def allowed(change: Callable[[], None]) -> bool:
    """Make a change; False if the folder may only be read. Raises OSError."""
    try:
        change()
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return False
    return True
