"""Stop a resumable run between two layers at SIGINT and SIGTERM, and say how to go on."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from vacc_deploy.errors import QuantizationError, StoppedError, VaccDeployError
from vacc_deploy.progress import RunControl

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nFinishing the current layer; once more stops at once.\n"


class SignalControl(RunControl):
    """Handlers only while layers are computed; elsewhere a signal ends the command at once.

    Attributes:
        kept_layers: finished and all layers of a run that ended early, None where nothing stays.
    """

    def __init__(self, *, is_quiet: bool = False, launcher: Sequence[str] = ()) -> None:
        """Begin with no signal.

        Args:
            is_quiet: say nothing at the first signal; another process does.
            launcher: what the command was started with; see ``resume_command``.
        """
        self.launcher, self._is_quiet = tuple(launcher), is_quiet
        self.kept_layers: tuple[int, int] | None = None
        self._signum: int | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the first signal; the second one ends the command at once."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            # 128 + the signal's number, as shells report it.
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
        self._signum = signum
        if not self._is_quiet:
            # Not through a stream: the handler may have interrupted a write to that one.
            os.write(2, _NOTICE)

    def stop_signal(self) -> int | None:
        """Return the signal that was noted."""
        return self._signum

    def kept(self, finished: int, total: int) -> None:
        """Note what stays."""
        if not self._is_quiet:
            self.kept_layers = (finished, total)


@contextmanager
def hinting_at_resume(control: SignalControl) -> Iterator[None]:
    """Give the error of a run that keeps finished layers a hint how to go on.

    Raises:
        StoppedError: for an interruption in the middle of a layer.
    """
    try:
        yield
    except VaccDeployError as err:
        err.hint = _way_on(control, err)
        raise
    except (KeyboardInterrupt, SystemExit) as err:
        if not control.kept_layers:
            raise
        number = signal.SIGINT if isinstance(err, KeyboardInterrupt) else signal.SIGTERM
        stopped = StoppedError("Interrupted.", number)
        stopped.hint = _way_on(control)
        raise stopped from err
    except Exception:
        # An error without a hint of its own ends in a message of the system's, or a traceback.
        if control.kept_layers:
            click.echo(_way_on(control), err=True)
        raise


def _way_on(control: SignalControl, err: BaseException | None = None) -> str:
    """Return what stays and how to go on after ``err``; empty where nothing stays."""
    command = resume_command(sys.argv, control.launcher)
    if isinstance(err, StoppedError):  # says itself what stays
        return f"Resume with: {command}"
    if not control.kept_layers:
        return ""
    finished, total = control.kept_layers
    kept = f"{finished} of {total} layers are finished and kept."
    if isinstance(err, QuantizationError):
        # The same files would end the same way, and with others it is another run.
        return (
            f"{kept} --resume needs the same input files and options. With others, start over "
            "with --overwrite."
        )
    return f"{kept} Resume with: {command}"


def resume_command(argv: Sequence[str], launcher: Sequence[str] = ()) -> str:
    """Return the command line that was given, with ``--resume``, as a shell reads it.

    Args:
        argv: of this process.
        launcher: the program that started this and other processes, with its options.
    """
    program, arguments = argv[0], list(argv[1:])
    if "--resume" not in arguments:
        # Before a "--", behind which nothing is an option.
        end = arguments.index("--") if "--" in arguments else len(arguments)
        arguments.insert(end, "--resume")
    if launcher:
        return shlex.join([*launcher, "-m", "vacc_deploy", *arguments])
    if Path(program).name == "__main__.py":
        return shlex.join([sys.executable, "-m", "vacc_deploy", *arguments])
    found = shutil.which(Path(program).name)
    is_on_path = found is not None and Path(found).resolve() == Path(program).resolve()
    return shlex.join([Path(program).name if is_on_path else program, *arguments])
