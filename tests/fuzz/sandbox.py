"""Watches one execution of a reader: what it opens, what it raises, how long and how large it is.

An audit hook of Python sees every file that is opened, every process, socket and import, whoever
asks for it; a reader of a stranger's bytes has no use for any of them outside its own directory.
The hook does not see what a library written in C or Rust opens by itself.
"""

import codecs
import os
import re
import resource
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from vacc_deploy.errors import VaccDeployError

SECONDS, SECONDS_A_MEGABYTE = 1.0, 1.0
# Ten times the input, beside what the interpreter and its libraries take for themselves.
MEMORY_FACTOR, MEMORY_BASE = 10, 64 << 20
# A message is cut where it is printed; until then it may quote several names of a file.
MESSAGE_CHARS = 50_000
# Python imports a codec when a text first names it; json tries these by the first bytes of a file.
for _name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
    codecs.lookup(_name)
for _name in ("ascii", "latin-1", "cp437", "idna", "unicode-escape", "raw-unicode-escape"):
    codecs.lookup(_name)
# Events of which the first argument is a path; of these two arguments are.
_PATHS = ("open", "os.listdir", "os.scandir", "os.remove", "os.rmdir", "os.mkdir", "os.chmod")
_PATHS += ("os.truncate", "os.utime", "os.chown", "shutil.rmtree", "glob.glob")
_PAIRS = ("os.rename", "os.link", "os.symlink", "shutil.copyfile", "shutil.move")
_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.")
_FORBIDDEN += ("os.system", "os.kill", "ctypes.", "pickle.", "marshal.load", "urllib.", "http.")
_FORBIDDEN += ("_thread.start", "import", "exec", "compile", "os.putenv", "signal.", "mmap.")
# What a lock asks of the process that it names; and what takes or gives nothing.
_HARMLESS = re.compile(r"/proc/[0-9]+/stat/|/dev/null/")
_ALLOWED = ("socket.gethostname", "signal.pthread_sigmask")


class FindingError(BaseException):
    """What an input must never do. No ``except Exception`` of a reader can hide it."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


class Sandbox:
    """A directory in memory, and the watch over what a reader does while it is on.

    Attributes:
        directory: where a target puts its files; everything else is outside.
    """

    def __init__(self) -> None:
        memory = "/dev/shm"
        base = memory if os.access(memory, os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="vacc-fuzz-", dir=base)
        self.directory = Path(self._folder.name).resolve()
        self._inside = f"{self.directory}/"
        self._thread, self._allowed, self._escapes = 0, _ALLOWED, list[str]()
        sys.addaudithook(self._audit)

    def close(self) -> None:
        """Remove the directory; the hook stays, as Python has it, and sees nothing any more."""
        self._folder.cleanup()

    @contextmanager
    def watch(self, allowed: tuple[str, ...] = ()):
        """Watch this thread; an escape is raised again at the end if somebody has caught it."""
        self._allowed, self._escapes = (*_ALLOWED, *allowed), []
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = 0
        if self._escapes:
            raise FindingError("escape", self._escapes[0])

    def execute(self, function, data: bytes, *, allowed: tuple[str, ...] = ()) -> None:
        """Give ``data`` to a target.

        Raises:
            FindingError: another error than ours, an escape, or too much time, memory or message.
        """
        _forget_peak()
        memory, begin = peak_bytes(), spent_seconds()
        try:
            with self.watch(allowed):
                function(data, self.directory)
        except VaccDeployError as err:
            if len(str(err)) > MESSAGE_CHARS:
                raise FindingError("message", f"{len(str(err)):,} characters") from err
        except MemoryError as err:
            raise FindingError("memory", "MemoryError") from err
        seconds, grown = spent_seconds() - begin, peak_bytes() - memory
        if seconds > SECONDS + SECONDS_A_MEGABYTE * len(data) / 1e6:
            raise FindingError("slow", f"{seconds:.1f} s for {len(data):,} bytes")
        if grown > MEMORY_BASE + MEMORY_FACTOR * len(data):
            raise FindingError("memory", f"{grown >> 20} MiB for {len(data):,} bytes")

    def _audit(self, event: str, args: tuple) -> None:
        if self._thread != threading.get_ident() or event in self._allowed:
            return
        if event in _PATHS:
            bad = [path for path in args[:1] if not self._is_inside(path)]
        elif event in _PAIRS:
            bad = [path for path in args[:2] if not self._is_inside(path)]
        else:
            bad = list(args[:1]) if event.startswith(_FORBIDDEN) else []
        if bad or (event.startswith(_FORBIDDEN) and not args):
            what = f"{event} {str(bad[:1])[:200]}"
            self._escapes.append(what)
            raise FindingError("escape", what)

    def _is_inside(self, path) -> bool:
        if path is None or isinstance(path, int):
            return True
        text = f"{os.path.realpath(os.fsdecode(path))}/"
        return text.startswith(self._inside) or bool(_HARMLESS.fullmatch(text))


def spent_seconds() -> float:
    """Return the CPU time of all threads, and of the children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _forget_peak() -> None:
    """Let the peak begin at the memory of now: else one large input hides all after it."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_bytes() -> int:
    """Return the largest memory of this process since its peak was forgotten."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
