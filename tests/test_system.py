"""What the kernel says of the memory of this process and of the host."""

import inspect
import os
import subprocess
import sys

from vacc_deploy import system

MIB = 1 << 20


def test_available_memory_is_what_the_kernel_says():
    available = system.available_memory_bytes()
    assert MIB < available < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def hold_and_let_go():
    before = system.resident_memory_bytes()
    held = bytearray(os.urandom(1)) * (64 * MIB)
    assert system.resident_memory_bytes() >= before + 60 * MIB
    del held
    assert system.peak_memory_bytes() >= before + 60 * MIB
    system.reset_peak_memory()
    assert system.peak_memory_bytes() <= before + 32 * MIB


def test_the_peak_stays_until_it_is_reset():
    # In a process of its own: what the tests before it have held may be given back meanwhile.
    source = inspect.getsource(hold_and_let_go)
    lines = f"import os\nfrom vacc_deploy import system\nMIB = {MIB}\n{source}hold_and_let_go()"
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_there_is_a_core():
    assert 1 <= system.num_cores() <= os.cpu_count()
