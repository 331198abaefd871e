"""Some faults of each kind, at moments that a seed chooses; benchmarks/try_faults.py tries more.

A case costs a run in a fork, half a second of one core at most, and another where something is
left. So the suite tries few, of the commands that differ in how they write.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
import runs
from acts import error, send, strike
from calls import every_full_disk
from fault import START, Fault
from kinds import KINDS, is_tried
from play import Case, play
from runs import COMMANDS
from stage import FRESH, OVERWRITE, READ, RESUME, Stage

from vacc_deploy.cli.signals import SignalGuard
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs import files
from vacc_deploy.outputs import output as output_module

SEED = 11
PREPARE, QUANTIZE, GOES_ON = (
    ("prepare", OVERWRITE),
    ("quantize int8", OVERWRITE),
    ("quantize int8", RESUME),
)
YAML, READS = ("yaml", OVERWRITE), ("verify", READ)
# Kind -> where it is tried, and how often.
TRIED = {
    "kill -9": ((PREPARE, 3), (QUANTIZE, 2), (GOES_ON, 2), (YAML, 2)),
    "kill -9, twice": ((QUANTIZE, 1),),
    "SIGINT": ((PREPARE, 1), (GOES_ON, 1)),
    "SIGTERM": ((QUANTIZE, 1),),
    "SIGHUP": ((PREPARE, 1), (QUANTIZE, 1)),
    "full disk": ((PREPARE, 2), (GOES_ON, 2), (YAML, 1)),
    "real file system": ((PREPARE, 1), (QUANTIZE, 1)),
    "write error": ((PREPARE, 2), (QUANTIZE, 1)),
    "read error": ((PREPARE, 2), (GOES_ON, 1)),
    "EMFILE": ((PREPARE, 1), (QUANTIZE, 1)),
    "RLIMIT_FSIZE": ((PREPARE, 1), (QUANTIZE, 1)),
    "RLIMIT_AS": ((PREPARE, 2),),
    "short calls": ((QUANTIZE, 2),),
    "source changes": ((PREPARE, 2), (QUANTIZE, 1)),
    "user in the output": ((PREPARE, 2),),
    "two processes": ((PREPARE, 2), (GOES_ON, 1)),
    "three processes": ((PREPARE, 1),),
    "foreign file system": ((PREPARE, 2), (QUANTIZE, 1)),
    "links": ((PREPARE, 4),),
    "clock": ((QUANTIZE, 2),),
}


@pytest.fixture(scope="module")
def stage():
    # Every run waits for the disk some forty times.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix="vacc-deploy-faults-", dir=place))
    yield Stage(home)
    shutil.rmtree(home)


def try_all(stage, cases):
    verdicts = [play(stage, case) for case in cases]
    problems = [verdict.to_text() for verdict in verdicts if verdict.problems]
    assert not problems, "\n".join(problems)
    skipped = [verdict.is_skipped for verdict in verdicts]
    if all(skipped):
        pytest.skip(skipped[0])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_and_nothing_is_half(stage, kind):
    rng = random.Random(f"{SEED} {kind}")
    cases = []
    for (name, start), count in TRIED[kind]:
        base = stage.base(COMMANDS[name], start)
        assert is_tried(kind, base)
        cases += [KINDS[kind][0](base, rng) for _ in range(count)]
    try_all(stage, cases)


def test_a_full_disk_at_every_call_of_a_small_file(stage):
    try_all(stage, every_full_disk(stage.base(COMMANDS["yaml"], OVERWRITE)))


@pytest.mark.parametrize(("number", "lasts"), [(3, True), (3, False), (5, True)])
def test_an_older_output_that_does_not_get_its_name_back_is_named(stage, number, lasts):
    # Renames 1 to 3 are trials; 4 and 5 put the new output in its place.
    faults = (error("EDQUOT", "rename", number, lasts=lasts),)
    case = Case("full disk", COMMANDS["prepare"], OVERWRITE, faults=(faults,))
    try_all(stage, [case])


def test_a_signal_as_soon_as_it_is_watched_for(stage):
    def change():
        plain = SignalGuard._watch

        def watch(guard, reader):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            plain(guard, reader)

        SignalGuard._watch = watch

    case = Case("SIGTERM", COMMANDS["yaml"], OVERWRITE, faults=((broken(change),),), codes=(143,))
    try_all(stage, [case])


@pytest.mark.parametrize("is_after", [False, True])
def test_a_signal_while_an_older_output_gets_its_name_back(stage, is_after):
    fault = strike("SIGHUP", "rename", 3, is_after=is_after)
    case = Case("SIGHUP", COMMANDS["prepare"], OVERWRITE, faults=((fault,),), codes=(129,))
    try_all(stage, [case])


def test_a_check_of_the_error_that_fails_too_ends_without_a_traceback(stage):
    faults = (error("EACCES", "stat", 300, lasts=True),)
    try_all(stage, [Case("read error", COMMANDS["prepare"], OVERWRITE, faults=(faults,))])


def test_an_older_output_that_cannot_be_removed_is_named(stage):
    base = stage.base(COMMANDS["prepare"], OVERWRITE)
    fault = error("EACCES", "rmdir", base.count("rmdir"), lasts=True)
    try_all(stage, [Case("write error", COMMANDS["prepare"], OVERWRITE, faults=((fault,),))])


# ---- the harness itself: it finds what is wrong -------------------------------------------------


def broken(change):
    """Return the fault that the package works otherwise in the process that is judged."""
    return Fault(START, 1, lambda *_: change(), "broken")


def remove_the_older_output_first():
    def put_in_place(partial, target):
        if target.exists():
            shutil.rmtree(target)
        os.rename(partial, target)

    output_module._put_in_place = put_in_place


def write_half():
    plain = files.write_bytes

    def half(path, chunks):
        written = plain(path, chunks)
        if path.name == "tokenizer.json":
            os.truncate(path, 100)
        return written

    files.write_bytes = half


def at_the_end(act):
    """Return a change by which a run does something when its output stands."""

    def change():
        output_module.remove_leftovers = act

    return change


@at_the_end
def clear_too_much(target, *_):
    shutil.rmtree(target.parent / "out-mine")


@at_the_end
def read_what_is_outside(target, *_):
    (target.parent.parent / "outside" / "secret.txt").read_bytes()


@at_the_end
def print_a_traceback(*_):
    sys.stderr.write("Traceback (most recent call last):\nValueError: never mind\n")


@at_the_end
def end_otherwise(*_):
    sys.exit(7)


@at_the_end
def wait_for_ever(*_):
    time.sleep(1000)


@at_the_end
def leave_something(target, *_):
    target.with_name("out.partial").mkdir(exist_ok=True)


@at_the_end
def fail_without_a_word(*_):
    raise OutputError("It failed.")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (remove_the_older_output_first, "loss: the older output is gone"),
        (write_half, "half: exit code 0"),
        (clear_too_much, "loss: work/out-mine/thesis.txt is gone"),
        (read_what_is_outside, "escape: it opened"),
        (print_a_traceback, "traceback: ValueError: never mind"),
        (end_otherwise, "code: 7"),
        (wait_for_ever, "hang: still running after 1 s"),
        (leave_something, "left: exit code 0"),
        (fail_without_a_word, "message: it names no file"),
    ],
)
def test_the_harness_finds(stage, monkeypatch, change, problem):
    if change is wait_for_ever:
        monkeypatch.setattr(runs, "LIMIT_SECONDS", 1.0)
    faults = [broken(change)]
    if change is remove_the_older_output_first:
        faults.append(Fault("rename", 1, send(signal.SIGKILL), "SIGKILL", about="/out.partial"))
    case = Case("x", COMMANDS["prepare"], OVERWRITE, faults=(tuple(faults),), codes=(1, 137))
    verdict = play(stage, case)
    assert any(line.startswith(problem) for line in verdict.problems), verdict.to_text()


def test_undisturbed_runs_are_found_to_be_well(stage):
    starts = (FRESH, "prepare"), (OVERWRITE, "prepare"), (RESUME, "quantize int8"), (READ, "verify")
    for start, name in starts:
        verdict = play(stage, Case("none", COMMANDS[name], start))
        assert not verdict.problems, verdict.to_text()
