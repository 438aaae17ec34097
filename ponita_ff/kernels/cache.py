"""Whom the cache folder belongs to. What lies there is run, so nobody else may be able to put anything there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ponita_ff.kernels.build import KernelError

__all__ = ["check_private", "make_private_folder"]

_REMEDY = "name a folder of your own by PONITA_FF_CACHE"


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user can read or write; one that is there must already be safe.

    Raises:
        KernelError: As :func:`check_private`.
        OSError: Where it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(folder)


def check_private(path: Path) -> None:
    """Refuse a file or folder that somebody else could have written: only this user and root may own or write it.

    Folders above are not looked at: nobody but this user and root can make a file that belongs to them, wherever it
    lies. A sticky folder such as /tmp is no place for the cache itself, a folder in it is.

    Raises:
        KernelError: Naming the path, whose it is or who may write to it, and what to do.
        OSError: Where it cannot be looked at.
    """
    if not hasattr(os, "getuid"):  # Windows: access lists, which stat does not tell
        return
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0):
        raise KernelError(f"{path} belongs to another user (uid {found.st_uid}) and is not used: {_REMEDY}")
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)):
        raise KernelError(
            f"others can write to {path} (mode {stat.S_IMODE(found.st_mode):04o}), so it is not used: "
            f"remove it and what is in it, or {_REMEDY}"
        )


def _is_own_group(gid: int) -> bool:
    """Whether a group is this user's alone, as many systems give one to each, and let it write by default."""
    try:
        import grp
        import pwd

        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except (ImportError, KeyError):
        return False
    return group.gr_name == user.pw_name and gid == user.pw_gid and set(group.gr_mem) <= {user.pw_name}
