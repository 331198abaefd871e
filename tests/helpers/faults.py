"""File systems that refuse a call, each with the error that real mounts give."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

NOT_SUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def error(number, path=None):
    return OSError(number, os.strerror(number), path)


def refuse(monkeypatch, call, number, *, only=lambda *args: True):
    """Let ``call`` (flock, link, symlink, rename, replace, chmod) fail where ``only`` is true."""
    module = fcntl if call == "flock" else os
    real = getattr(module, call)

    def refused(*args, **options):
        if only(*args):
            raise error(number)
        return real(*args, **options)

    monkeypatch.setattr(module, call, refused)


def refuse_sync(monkeypatch, number, *, of_directories):
    """Let fsync fail for directories, or for files."""
    real = os.fsync

    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) is of_directories:
            raise error(number)
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
