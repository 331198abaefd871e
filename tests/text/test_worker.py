import os
import signal
import subprocess
import sys
import time

import pytest

from vacc_deploy.errors import CheckpointError
from vacc_deploy.text import worker as worker_module
from vacc_deploy.text.worker import Session, Worker, WorkerError

LIMITS = {"seconds": 1.0, "num_bytes": 1 << 28, "limit": 1 << 20}


@pytest.fixture
def worker():
    made = Worker("template_job.py", ("jinja2", "markupsafe"))
    yield made
    made.close()


def render(worker, template="{{ x }}", x="1"):
    session = Session(worker, template.encode(), seconds=5, num_bytes=1 << 28)
    return session.request({"op": "render"}, b'{"x": "%s"}' % x.encode(), **LIMITS)[1].decode()


def test_nothing_starts_before_the_first_request(worker):
    session = Session(worker, b"x", seconds=5, num_bytes=1 << 28)
    assert worker._process is None and not session.is_loaded


def test_one_process_serves_many_files_and_asks_again_for_one_it_gave_up(worker):
    sessions = [
        Session(worker, f"{{{{ x }}}}{n}".encode(), seconds=5, num_bytes=1 << 28) for n in range(9)
    ]
    pids = set()
    for _ in range(2):
        for number, session in enumerate(sessions):
            _, text = session.request({"op": "render"}, b'{"x": "a"}', **LIMITS)
            assert text == f"a{number}".encode()
            pids.add(worker._process.pid)
    assert len(pids) == 1


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_process_that_was_ended_between_requests_is_replaced(worker, signum):
    assert render(worker) == "1"
    os.kill(worker._process.pid, signum)
    worker._process.wait()
    assert render(worker, x="2") == "2"


def test_a_process_that_is_ended_at_work_is_an_error_and_replaced(worker):
    assert render(worker) == "1"
    pid = worker._process.pid
    ender = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -KILL {pid}"])
    loop = b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    session = Session(worker, loop, seconds=60, num_bytes=1 << 28)
    with pytest.raises(WorkerError, match=r"ended its process \(SIGKILL\)"):
        session.request({"op": "render"}, b"{}", **LIMITS)
    ender.wait()
    assert render(worker) == "1"


def test_a_process_that_is_stopped_is_not_waited_for(worker, monkeypatch):
    assert render(worker) == "1"
    monkeypatch.setattr(worker_module, "_WALL_SECONDS", 0.5)
    monkeypatch.setattr(worker_module, "_WALL_PER_SECOND", 0.0)
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="needs more than"):
        render(worker)
    monkeypatch.undo()
    assert render(worker) == "1"


def test_an_interrupt_ends_the_process(worker):
    assert render(worker) == "1"
    pid = worker._process.pid
    loop = b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    session = Session(worker, loop, seconds=60, num_bytes=1 << 28)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            session.request({"op": "render"}, b"{}", **LIMITS)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert render(worker) == "1"


def test_a_process_ends_with_the_one_that_started_it():
    code = (
        "from vacc_deploy.text.worker import Session, Worker\n"
        "import os\n"
        "w = Worker('template_job.py', ('jinja2', 'markupsafe'))\n"
        "s = Session(w, b'x', seconds=5, num_bytes=1 << 28)\n"
        "s.request({'op': 'render'}, b'{}', seconds=1, num_bytes=1 << 28, limit=99)\n"
        "print(w._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -9
    for _ in range(50):
        try:
            os.kill(int(run.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the process is still there")


def test_it_gets_no_environment_and_writes_no_file(worker, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert render(worker) == "1"
    pid = worker._process.pid
    with open(f"/proc/{pid}/environ", "rb") as file:
        assert b"HF_TOKEN" not in file.read()
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    with open(f"/proc/{pid}/limits") as file:
        limits = {line[:26].strip(): line.split()[-3] for line in file if line.startswith("Max")}
    assert (limits["Max file size"], limits["Max core file size"]) == ("0", "0")
    assert limits["Max open files"] == "32"


def test_a_process_that_cannot_be_started_is_an_error(worker, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CheckpointError, match="run cannot be started: .*/nowhere/python.*Free"):
        render(worker)


def test_reading_a_file_again_takes_no_time_of_its_own(worker):
    sessions = [
        Session(worker, b"{{ x }}%d" % n + b"{# #}" * 9000, seconds=5, num_bytes=1 << 28)
        for n in range(5)
    ]
    for _ in range(3):
        for session in sessions:
            session.request({"op": "render"}, b"{}", seconds=0, num_bytes=1 << 28, limit=99)
    for session in sessions:
        assert 5 - session._seconds < 2 * session._load_seconds + 0.1


def test_a_process_that_ends_twice_before_it_answers_is_an_error(monkeypatch):
    def end(*arguments):
        raise worker_module._IdleError

    one = Worker("template_job.py", ("jinja2",))
    monkeypatch.setattr(one, "_exchange", end)
    with pytest.raises(WorkerError, match="ends before it answers"):
        one.request({"op": "load"}, b"", seconds=1, num_bytes=1, limit=0)
