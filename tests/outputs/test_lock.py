"""One run at a time writes an output, with and without locks of the file system."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest
from faults import error, refuse
from texts import ROOT

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs import lock as module
from vacc_deploy.outputs.file_system import this_host
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.partial import find_writer

UNSUPPORTED = (
    *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF, errno.EIO),
    *(errno.ENOTTY, errno.EPERM, errno.EREMOTEIO),
)


@pytest.fixture
def partial(tmp_path):
    return tmp_path / "out.partial"


def write(partial, **options):
    """Write an output; return its notes and the lock files that stood there meanwhile."""
    notes = []
    with output_directory(
        partial.with_name("out"), source=None, say=notes.append, **options
    ) as folder:
        (folder / MANIFEST_NAME).write_text("{}")
        locks = [path.name for path in folder.glob(".vacc-deploy-lock-*")]
    return notes, locks


def refused(partial, **options):
    with pytest.raises(OutputError) as caught:
        write(partial, **options)
    return str(caught.value)


def leave(partial, number=1, **owner):
    """Leave what a run that was killed leaves: the marker and a lock file."""
    host, space = this_host()
    values = {"host": host, "space": space, "pid": 1 << 22, "start": "1", **owner}
    partial.mkdir(exist_ok=True)
    (partial / ".vacc-deploy-partial").touch()
    path = partial / f".vacc-deploy-lock-{number}"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("number", UNSUPPORTED, ids=errno.errorcode.get)
def test_without_locks_a_lock_file_does_and_a_note_says_so(partial, monkeypatch, number):
    refuse(monkeypatch, "flock", number)
    notes, locks = write(partial)
    assert notes == [
        f"the file system of {partial.parent} has no locks (flock: {os.strerror(number)}), so a "
        "lock file kept other runs away."
    ]
    assert locks == [".vacc-deploy-lock-1"]
    assert [path.name for path in (partial.parent / "out").iterdir()] == [MANIFEST_NAME]


def test_with_locks_there_is_no_lock_file_and_no_note(partial):
    assert write(partial) == ([], [])


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_taken_is_no_lock_that_is_missing(partial, monkeypatch, number):
    refuse(monkeypatch, "flock", number)
    assert refused(partial) == f"Another run is writing {partial}. Wait for it to end."


def test_the_lock_file_names_its_owner_and_keeps_a_second_run_away(partial, monkeypatch):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    host, space = this_host()
    with output_directory(partial.with_name("out"), source=None) as folder:
        owner = json.loads((folder / ".vacc-deploy-lock-1").read_text())
        assert (owner["host"], owner["space"], owner["pid"]) == (host, space, os.getpid())
        text = refused(partial)
        assert text.startswith(
            f"Another run is writing {partial}: process {os.getpid()} on the host {host}, begun "
        )
        assert text.endswith(" s ago. Wait for it to end.")
        assert folder.is_dir()
        (folder / MANIFEST_NAME).write_text("{}")
    assert [path.name for path in partial.parent.iterdir()] == ["out"]


def test_of_another_host_the_message_says_what_to_do_if_the_run_is_gone(partial, monkeypatch):
    refuse(monkeypatch, "flock", errno.EOPNOTSUPP)
    path = leave(partial, host="other")
    os.utime(path, (0, module.time.time() - 7200))
    assert refused(partial) == (
        f"Another run is writing {partial}: process {1 << 22} on the host other, begun 2 h 00 min "
        "ago. Wait for it to end. If it is gone, remove its lock file, then rerun:\n"
        f"  rm {path}"
    )
    assert path.is_file()
    path.unlink()
    write(partial)


@pytest.mark.parametrize("text", ["", "[1]", "{", "x" * 5000])
def test_a_lock_file_without_an_owner_is_taken_for_one_that_is_just_being_made(
    partial, monkeypatch, text
):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    path = leave(partial)
    path.write_text(text)
    message = refused(partial)
    assert "a process that has not yet given its name, begun 0.0 s ago." in message
    assert message.endswith(f"\n  rm {path}")


def test_the_lock_file_of_a_process_that_has_ended_is_taken_over(partial, monkeypatch):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    leave(partial, number=7)
    assert write(partial)[1] == [".vacc-deploy-lock-8"]


def test_a_later_process_of_the_same_number_is_another_one(partial, monkeypatch):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    leave(partial, pid=os.getpid(), start="1")
    assert write(partial)[1] == [".vacc-deploy-lock-2"]


def test_of_two_runs_that_take_over_at_once_one_is_refused(partial, monkeypatch):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    leave(partial)
    real, both = module._write, threading.Barrier(2, timeout=20)
    results = []

    def together(file):
        if not results:
            both.wait()
        real(file)

    def run():
        try:
            results.append(module.lock_directory(partial, partial / ".vacc-deploy-partial"))
        except OutputError as err:
            results.append(str(err))

    monkeypatch.setattr(module, "_write", together)
    # The first try of each meets the other's; the one that is second tries again alone.
    monkeypatch.setattr(both, "wait", once_each(both.wait))
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    locks = [result for result in results if isinstance(result, module.Lock)]
    assert len(locks) == 1 and len(results) == 2
    assert [path.name for path in partial.glob(".vacc-deploy-lock-*")] == [locks[0].file.name]
    assert any(str(result).startswith("Another run is writing") for result in results)
    locks[0].close()


def once_each(wait):
    """Return ``wait`` that does so once for each thread."""
    waited = set()

    def first_time():
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            wait()

    return first_time


def test_who_comes_late_to_a_take_over_withdraws(partial, monkeypatch):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    old, real = leave(partial), module._write

    def late(file):
        # Meanwhile another run has taken over from the same owner, has ended, and a third began.
        if old.exists():
            old.unlink()
            leave(partial, number=1, pid=os.getpid(), start=module._start_of(os.getpid()))
            old.rename(partial / ".vacc-deploy-lock-3")
        real(file)

    monkeypatch.setattr(module, "_write", late)
    assert refused(partial).startswith(f"Another run is writing {partial}: process {os.getpid()}")
    assert [path.name for path in partial.glob(".vacc-deploy-lock-*")] == [".vacc-deploy-lock-3"]


@pytest.mark.parametrize("keeps", [None, lambda: True], ids=["removed", "kept"])
def test_after_an_error_no_lock_stays(partial, monkeypatch, keeps):
    refuse(monkeypatch, "flock", errno.ENOSYS)
    with (
        pytest.raises(ValueError),
        output_directory(partial.with_name("out"), keeps=keeps, source=None),
    ):
        raise ValueError
    assert partial.exists() is (keeps is not None)
    assert not list(partial.glob(".vacc-deploy-lock-*"))


@pytest.mark.parametrize("call", ["flock", "fsync"])
def test_an_error_while_the_lock_is_made_leaves_nothing(partial, monkeypatch, call):
    refuse(monkeypatch, "flock", errno.ENOSYS)

    def fails(*args):
        raise error(errno.EIO)

    monkeypatch.setattr(os, "fsync" if call == "fsync" else "write", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write(partial)
    assert list(partial.parent.iterdir()) == []


def test_a_run_with_locks_respects_the_lock_file_of_one_without(partial):
    leave(partial, host="other")
    assert "process 4194304 on the host other" in refused(partial)


def test_a_killed_process_leaves_a_lock_that_the_next_one_takes_over(partial, monkeypatch):
    program = (
        "import fcntl, os, pathlib, signal, sys\n"
        "from vacc_deploy.outputs.output import output_directory\n"
        "def flock(*args): raise OSError(38, 'Function not implemented')\n"
        "fcntl.flock = flock\n"
        "with output_directory(pathlib.Path(sys.argv[1]), source=None):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(partial.with_name("out"))]
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert process.returncode == -9
    assert (partial / ".vacc-deploy-lock-1").is_file()
    refuse(monkeypatch, "flock", errno.ENOSYS)
    assert write(partial)[1] == [".vacc-deploy-lock-2"]


def test_flock_still_tells_a_run_from_one_that_was_killed(partial):
    partial.mkdir()
    with (partial / ".vacc-deploy-partial").open("w") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        assert "Another run is writing" in refused(partial)
    write(partial)


def test_who_only_looks_is_told_of_a_run_at_work_and_stops_none(partial, monkeypatch):
    assert find_writer(partial) == ""
    with output_directory(partial.with_name("out"), source=None) as folder:
        expected = f"Another run is writing {partial}. Wait for it to end."
        assert find_writer(partial) == find_writer(partial) == expected
        (folder / MANIFEST_NAME).write_text("{}")
    leave(partial)  # killed
    assert find_writer(partial) == ""
    leave(partial, host="elsewhere")
    assert find_writer(partial).startswith(f"Another run is writing {partial}: process ")
    refuse(monkeypatch, "flock", errno.ENOSYS)
    assert "on the host elsewhere" in find_writer(partial)
