"""Give a command its three streams where whoever started it has closed some."""

from __future__ import annotations

import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_closed() -> None:
    """Open the null device in the place of stdin, stdout and stderr, wherever one is closed.

    Else the next file that is opened, such as one of weights, gets the stream's descriptor, and
    what a library prints there is written into it.
    """
    for descriptor in range(len(_STREAMS)):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest one that is free, and so this one: those before it are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, mode in _STREAMS:
        if getattr(sys, name) is None:
            # Not of its descriptor, which something else may have had since Python began.
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, stream)
