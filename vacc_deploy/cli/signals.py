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
        self.kept_layers = (finished, total)


@contextmanager
def telling_how_to_resume(control: SignalControl) -> Iterator[None]:
    """Add how to go on to the error of a run that keeps finished layers.

    Raises:
        StoppedError: for an interruption in the middle of a layer.
    """
    try:
        yield
    except StoppedError as err:
        command = resume_command(sys.argv, control.launcher)
        err.args = (f"{err} Resume with: {command}",)
        raise
    except VaccDeployError as err:
        if control.kept_layers:
            err.args = (f"{err} {_way_on(control, err)}",)
        raise
    except (KeyboardInterrupt, SystemExit) as err:
        if not control.kept_layers:
            raise
        number = signal.SIGINT if isinstance(err, KeyboardInterrupt) else signal.SIGTERM
        raise StoppedError(f"Interrupted. {_way_on(control)}", number) from err
    except BaseException:
        tell_way_on(control)
        raise


def tell_way_on(control: SignalControl, err: BaseException | None = None) -> None:
    """Print what stays and how to go on after ``err``, where something stays."""
    if control.kept_layers:
        click.echo(_way_on(control, err), err=True)


def _way_on(control: SignalControl, err: BaseException | None = None) -> str:
    assert control.kept_layers is not None
    finished, total = control.kept_layers
    if isinstance(err, QuantizationError):
        # The same files would end the same way, and with others it is another run.
        return (
            f"{finished} of {total} layers are finished and kept, but --resume goes on with "
            "unchanged files only: with a changed one begin again by --overwrite."
        )
    command = resume_command(sys.argv, control.launcher)
    return f"{finished} of {total} layers are finished and kept. Resume with: {command}"


def resume_command(argv: Sequence[str], launcher: Sequence[str] = ()) -> str:
    """Return the command line that was given, with ``--resume``, as a shell reads it.

    Args:
        argv: of this process.
        launcher: the program that started this and other processes, with its options.
    """
    program, arguments = argv[0], list(argv[1:])
    if "--resume" not in arguments:
        # Before a "--", behind which nothing is an option.
        place = arguments.index("--") if "--" in arguments else len(arguments)
        arguments.insert(place, "--resume")
    if launcher:
        return shlex.join([*launcher, "-m", "vacc_deploy", *arguments])
    if Path(program).name == "__main__.py":
        return shlex.join([sys.executable, "-m", "vacc_deploy", *arguments])
    found = shutil.which(Path(program).name)
    is_on_path = found is not None and Path(found).resolve() == Path(program).resolve()
    return shlex.join([Path(program).name if is_on_path else program, *arguments])
