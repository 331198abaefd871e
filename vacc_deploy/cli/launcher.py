"""Join the processes that ``torchrun`` starts, and let all of them end when one fails.

The only place that reads the launcher's environment: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE and TORCHELASTIC_RUN_ID here, MASTER_ADDR and MASTER_PORT in torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from vacc_deploy.cli.options import settings
from vacc_deploy.cli.resuming import describe_kept, hinting_at_resume
from vacc_deploy.cli.signals import signal_of
from vacc_deploy.cli.telling import tell
from vacc_deploy.errors import UsageError, VaccDeployError
from vacc_deploy.progress import KeptLayers

if TYPE_CHECKING:
    from vacc_deploy.quantize.ranks import Ranks

_REQUIRED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """Which of several processes this one is.

    Attributes:
        rank: number of this process, from 0.
        count: number of all processes.
        local_rank: number among those on this machine, from 0.
        local_count: number of those.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """Return which of several processes this one is, None where it is the only one.

    Raises:
        UsageError: a variable is missing or not a number.
    """
    count = _read_number(environment, "WORLD_SIZE", 1)
    if count == 1:
        return None
    missing = [name for name in _REQUIRED if not environment.get(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} {verb} not set. Start the processes "
            "with torchrun, or leave WORLD_SIZE unset for one process."
        )
    rank, local_rank = (_read_number(environment, name, 0) for name in _REQUIRED[:2])
    # Without it all processes are taken to be on this machine.
    local_count = _read_number(environment, "LOCAL_WORLD_SIZE", count)
    if not (rank < count and local_rank < local_count <= count):
        raise UsageError(
            f"RANK {rank} of WORLD_SIZE {count} and LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE "
            f"{local_count} contradict each other. Start the processes with torchrun."
        )
    return Launch(rank, count, local_rank, local_count)


def _read_number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    # int() would take more: a sign, underscores, digits of other alphabets.
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"The environment variable {name} is {text!r}, expected a whole number.")
    return int(text)


def launcher(environment: Mapping[str, str], launch: Launch | None) -> tuple[str, ...]:
    """Return how torchrun was called, as far as it says; empty without it."""
    if launch is None or "TORCHELASTIC_RUN_ID" not in environment:
        return ()
    # Right where every machine runs as many processes as this one.
    nodes = launch.count // launch.local_count
    several = ("--nnodes", str(nodes)) if nodes > 1 else ()
    return ("torchrun", *several, "--nproc-per-node", str(launch.local_count))


def device_of(device: str, launch: Launch | None) -> str:
    """Return the device of this process: the CUDA device of its number on this machine.

    Raises:
        UsageError: one CUDA device is named for several processes.
    """
    if launch is None or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UsageError(
            f"--device {device} names one device for {launch.count} processes. Give --device cuda: "
            "each process takes the one of its number."
        )
    return f"cuda:{launch.local_rank}"


@contextmanager
def join_ranks(
    environment: Mapping[str, str], device: str
) -> Iterator[tuple[Ranks, KeptLayers, str]]:
    """Let a resumable command run as one of the processes that the environment tells of.

    Yields the processes of the run, what tells which layers it keeps, and this process's device.

    Where several of them fail, only the first one says why. A signal is for all of them, so rank 0,
    which knows what stays, speaks for all.

    Args:
        environment: variables of this process.
        device: ``cpu``, ``cuda`` or, for a single process, ``cuda:N``.

    Raises:
        UsageError: the environment contradicts itself; the device is not there, or is one for
            several processes.
        RankLostError: the others did not come.
        SystemExit: another process has failed before and says why.
    """
    from vacc_deploy.quantize.ranks import ALONE

    launch, kept = read_launch(environment), KeptLayers()
    way = launcher(environment, launch)
    if launch is None or launch.rank == 0:
        settings()["what_stays"] = partial(describe_kept, kept, way)
    else:
        settings()["is_silent"] = True
    if launch is None:
        with hinting_at_resume(kept, way):
            yield ALONE, kept, device
        return
    from vacc_deploy.quantize.compute import choose_compute
    from vacc_deploy.quantize.processes import ProcessRanks

    ranks = ProcessRanks(launch.rank, launch.count, launch.local_count)
    try:
        with hinting_at_resume(kept, way):
            own_device = device_of(device, launch)
            ranks.connect(choose_compute(own_device).device)
            yield ranks, kept, own_device
    except BaseException as err:
        is_interrupted = isinstance(err, KeyboardInterrupt)
        # Claimed before the connection closes: at that the others fail, and must not be first.
        may_speak = launch.rank == 0 or not is_interrupted
        is_first = may_speak and ranks.claim_failure()
        ranks.leave(is_failed=True)
        if is_first:
            raise
        # The first one may not know what stays: only rank 0 enters the output's directory.
        hint = describe_kept(kept, way) if is_interrupted else getattr(err, "hint", "")
        hint = hint or settings().get("kept", "")
        if hint:
            tell(hint)
        raise SystemExit(_exit_code(err)) from err
    ranks.leave()


def _exit_code(err: BaseException) -> int:
    if isinstance(err, VaccDeployError):
        return err.exit_code
    if isinstance(err, SystemExit) and isinstance(err.code, int):
        return err.code
    if isinstance(err, (KeyboardInterrupt, click.Abort)):
        return 128 + signal_of(err)
    return 1
