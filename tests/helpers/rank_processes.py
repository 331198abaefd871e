"""Run a function as several ranks of one run, in processes forked from this one."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from typing import NamedTuple

import torch

from vacc_deploy.quantize.processes import ProcessRanks

TIMEOUT_SECONDS = 60


class Raised(NamedTuple):
    """What a rank has raised: the error's class and its text."""

    kind: type
    text: str


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(count, work):
    """Call ``work(ranks)`` on every rank; return, by rank, what it returned, or ``Raised``.

    A rank that ends without either gives its exit code.
    """
    port, context = free_port(), multiprocessing.get_context("fork")
    ends, processes = [], []
    for rank in range(count):
        end, other = context.Pipe(duplex=False)
        process = context.Process(target=_be_rank, args=(rank, count, port, work, other))
        with warnings.catch_warnings():
            # Newer interpreters warn of forking beside the threads of a test runner.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        other.close()
        ends.append(end)
        processes.append(process)
    try:
        return [_outcome(*pair) for pair in zip(ends, processes, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _outcome(end, process):
    try:
        if end.poll(TIMEOUT_SECONDS):
            return end.recv()
    except EOFError:
        process.join(TIMEOUT_SECONDS)
        return process.exitcode
    raise AssertionError("a rank hangs")


def _be_rank(rank, count, port, work, end):
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    ranks = ProcessRanks(rank, count, count)
    try:
        ranks.connect(torch.device("cpu"))
        result = work(ranks)
    except BaseException as err:
        ranks.claim_failure()
        end.send(Raised(type(err), str(err)))
        ranks.leave(is_failed=True)
    else:
        end.send(result)
        ranks.leave()
