"""An interruption reaches the command wherever Python was when it came."""

import os
import signal
import subprocess
import sys

import pytest

# The signal comes while a generator is cleared away, where Python swallows what is raised.
PROGRAM = """
import os, signal, sys, time
from vacc_deploy.cli.signals import SignalGuard, signal_of

def read():
    try:
        yield 1
    finally:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.01)

SignalGuard().install()
try:
    reader = read()
    next(reader)
    del reader
    time.sleep(1)
    print("went on")
except KeyboardInterrupt as err:
    print("interrupted by", signal_of(err))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_while_python_clears_away_is_not_lost(number):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number))],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
        check=False,
    )
    assert result.stdout == f"interrupted by {int(number)}\n"
    assert result.stderr == ""
