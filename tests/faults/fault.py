"""Faults at a chosen call: a layer over the calls by which Python touches files.

The layer counts the calls that concern the files of a sandbox, by kind, and lets something happen
at one of them: an error, a signal, a change by somebody else. It lies in the process that it
disturbs, so it goes with that process. Calls of native libraries pass it by; limits of the system
and real mounts reach those.
"""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import pathlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Before it is counted.
_READLINK = os.readlink
# Kind of call -> functions of ``os`` whose first argument is a path.
_BY_PATH = {
    "rename": ("rename", "replace"),
    "unlink": ("unlink", "remove"),
    "mkdir": ("mkdir",),
    "rmdir": ("rmdir",),
    "list": ("listdir", "scandir"),
    "stat": ("stat", "lstat"),
    "truncate": ("truncate",),
    "readlink": ("readlink",),
}
# The same, where the second argument is the path that is made.
_BY_SECOND = {"link": ("link",), "symlink": ("symlink",)}
_BY_DESCRIPTOR = {"write": ("write",), "fsync": ("fsync",), "reserve": ("posix_fallocate",)}
# Those that change a file system, and those that only look at it. "any" counts the first ones.
CHANGING = (
    *("create", "write", "fsync", "close", "reserve", "truncate", "rename", "unlink", "mkdir"),
    *("rmdir", "link", "symlink"),
)
LOOKING = ("open", "read", "list", "stat", "readlink", "lock")
ANY = "any"
# Counted once, before the command begins.
START = "start"
# Of one call of read or write only a part is done, which the system may do at any time.
SHORT = "short"

Act = Callable[["Layer", str, str], object]


@dataclass(frozen=True)
class Fault:
    """What happens, and at which call.

    Attributes:
        call: the kind of call that is counted, ``ANY`` of ``CHANGING``, or ``START``.
        number: at which of them, from 1.
        act: what happens, given the layer, the kind of call and its path; or ``SHORT``.
        is_after: it happens right after the call, not before it.
        lasts: it happens at every later call too.
        about: only calls count whose path ends so.
        words: what happens, for people.
    """

    call: str
    number: int
    act: Act | str
    words: str
    is_after: bool = False
    lasts: bool = False
    about: str = ""

    def __str__(self) -> str:
        """Return, for example, ``ENOSPC at write 7 and all later ones``."""
        if self.call == START:
            return self.words
        later = " and all later ones" if self.lasts else ""
        place = f" of *{self.about}" if self.about else ""
        moment = f"{'after' if self.is_after else 'at'} {self.call} {self.number}"
        return f"{self.words} {moment}{place}{later}"


class Layer:
    """The layer of one process.

    Attributes:
        trace: kind and path of every call that was counted, the path from the root on.
        work: where the command runs.
        pause: waits for whoever started this process.
        tell: tells the judge of something, by kind and path.

    Args:
        root: the sandbox. Its folder "outside", but for the home in it, is nobody's business.
        faults: what is to happen.
        pause: see above.
        tell: see above; learns also of every file outside that is opened.
    """

    def __init__(
        self,
        root: str,
        faults: Sequence[Fault],
        *,
        pause: Callable[[], None],
        tell: Callable[[str, str], None],
    ) -> None:
        self.tell = tell
        self.work, self._root = os.path.join(root, "work"), os.path.join(root, "")
        self._faults, self.pause = faults, pause
        self.trace: list[tuple[str, str]] = []
        self._counts: Counter[int] = Counter()
        self._lock, self._is_acting = threading.Lock(), threading.local()

    def begin(self) -> None:
        """Replace the calls, and let happen what happens at the start."""
        self._install()
        for fault in self._faults:
            if fault.call == START and not isinstance(fault.act, str):
                fault.act(self, START, "")

    def _hit(self, call: str, path: str) -> list[Fault]:
        """Count a call; return what happens at it."""
        if path.startswith(f"{self._root}outside/") and call in ("open", "create", "readlink"):
            self.tell("escape", path)
        with self._lock:
            self.trace.append((call, path[len(self._root) :]))
            hits = []
            for index, fault in enumerate(self._faults):
                is_meant = fault.call == call or (fault.call == ANY and call in CHANGING)
                if not is_meant or not path.endswith(fault.about):
                    continue
                self._counts[index] += 1
                count = self._counts[index]
                if count == fault.number or (fault.lasts and count > fault.number):
                    hits.append(fault)
            return hits

    @contextmanager
    def at(self, call: str, path: str) -> Iterator[bool]:
        """Surround a call; yields whether it is to do a part only."""
        # What a fault itself does is not counted.
        if not path.startswith(self._root) or getattr(self._is_acting, "value", False):
            yield False
            return
        hits = self._hit(call, path)
        self._act(hits, call, path, is_after=False)
        yield any(fault.act == SHORT for fault in hits)
        self._act(hits, call, path, is_after=True)

    def _act(self, hits: list[Fault], call: str, path: str, *, is_after: bool) -> None:
        for fault in hits:
            if fault.is_after is is_after and not isinstance(fault.act, str):
                self._is_acting.value = True
                try:
                    fault.act(self, call, path)
                finally:
                    self._is_acting.value = False

    def _install(self) -> None:
        for names, find in ((_BY_PATH, _first), (_BY_SECOND, _second), (_BY_DESCRIPTOR, _opened)):
            for call, functions in names.items():
                for name in functions:
                    self._wrap(os, name, call, find)
        self._wrap(fcntl, "flock", "lock", _opened)
        self._wrap_os_open()
        real = io.open

        def open_file(
            file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kw: Any
        ) -> Any:
            if not self._is_watched(file):
                return real(file, mode, buffering, *args, **kw)
            return _open(self, file, mode, buffering, *args, **kw)

        io.open = builtins.open = open_file  # type: ignore[assignment]
        # 3.10 keeps its own references to all of these.
        if accessor := getattr(pathlib, "_NormalAccessor", None):
            for name in [n for n in vars(accessor) if hasattr(os, n) and not n.startswith("_")]:
                setattr(accessor, name, staticmethod(getattr(os, name)))
            accessor.open = staticmethod(open_file)

    def _is_watched(self, file: Any) -> bool:
        return _absolute(file, {}).startswith(self._root)

    def _wrap(self, module: Any, name: str, call: str, find: Callable[..., str]) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **kw: Any) -> Any:
            with self.at(call, find(args, kw)) as is_short:
                if is_short and call == "write":
                    return real(args[0], bytes(args[1])[: max(1, len(args[1]) // 2)])
                return real(*args, **kw)

        setattr(module, name, wrapped)

    def _wrap_os_open(self) -> None:
        real = os.open

        def wrapped(path: Any, flags: int, *args: Any, **kw: Any) -> int:
            is_creating = flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            with self.at("create" if is_creating else "open", _absolute(path, kw)):
                return real(path, flags, *args, **kw)

        os.open = wrapped  # type: ignore[assignment]


class _File(io.FileIO):
    """A file whose calls the layer counts."""

    def __init__(self, layer: Layer, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        self._layer, self._path = layer, _absolute(file, {})
        with layer.at("open" if mode[0] == "r" and "+" not in mode else "create", self._path):
            super().__init__(file, mode, closefd, opener)

    def readinto(self, buffer: Any) -> Any:
        with self._layer.at("read", self._path) as is_short:
            view = memoryview(buffer).cast("B")
            return super().readinto(view[: max(1, len(view) // 2)] if is_short else view)

    def read(self, size: int | None = -1) -> Any:
        if size is None or size < 0:
            return self.readall()
        with self._layer.at("read", self._path) as is_short:
            return super().read(max(1, size // 2) if is_short and size else size)

    def readall(self) -> Any:
        with self._layer.at("read", self._path):
            return super().readall()

    def write(self, data: Any) -> Any:
        with self._layer.at("write", self._path) as is_short:
            view = memoryview(data).cast("B")
            return super().write(view[: max(1, len(view) // 2)] if is_short else view)

    def close(self) -> None:
        if self.closed or not self.writable():
            super().close()
            return
        try:
            with self._layer.at("close", self._path):
                pass
        finally:  # whatever the system says, it is closed
            super().close()


def _open(
    layer: Layer,
    file: Any,
    mode: str,
    buffering: int,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """Open as ``io.open`` does, on a file that is counted."""
    raw = _File(layer, file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if buffering == 0:
        return raw
    kind = io.BufferedRandom if "+" in mode else io.BufferedReader
    kind = io.BufferedWriter if mode[0] in "wax" and "+" not in mode else kind
    buffered = kind(raw)  # type: ignore[type-var,arg-type]
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)


def _absolute(file: Any, options: dict[str, Any]) -> str:
    """Return the whole path of what a call is about."""
    if isinstance(file, int):
        try:
            return _READLINK(f"/proc/self/fd/{file}")
        except OSError:
            return ""
    try:
        path = os.fsdecode(file)
    except TypeError:
        return ""
    if options.get("dir_fd") is not None and not os.path.isabs(path):
        path = os.path.join(_absolute(options["dir_fd"], {}), path)
    return os.path.abspath(path)


def _first(args: tuple[Any, ...], options: dict[str, Any]) -> str:
    file = args[0] if args else options.get("path", ".")
    return _absolute("." if file is None else file, options)


def _second(args: tuple[Any, ...], options: dict[str, Any]) -> str:
    return _absolute(args[1], options)


def _opened(args: tuple[Any, ...], options: dict[str, Any]) -> str:
    file = args[0]
    return _absolute(file if isinstance(file, int) else file.fileno(), {})
