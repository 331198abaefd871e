import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vacc_deploy.children import entry as entry_module
from vacc_deploy.children.process import folder_of
from vacc_deploy.errors import ProcessError
from vacc_deploy.text import worker as worker_module
from vacc_deploy.text.session import Session
from vacc_deploy.text.worker import Worker, WorkerError

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
    os.waitid(os.P_PID, worker._process.pid, os.WEXITED | os.WNOWAIT)
    assert render(worker, x="2") == "2"


def test_a_process_that_is_ended_at_work_is_an_error_and_replaced(worker):
    assert render(worker) == "1"
    pid = worker._process.pid
    ender = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -KILL {pid}"])
    loop = b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    session = Session(worker, loop, seconds=60, num_bytes=1 << 28)
    with pytest.raises(ProcessError, match=r"ended from outside \(SIGKILL\).*Free memory"):
        session.request({"op": "render"}, b"{}", **LIMITS)
    ender.wait()
    assert render(worker) == "1"


def test_a_process_that_is_stopped_is_not_waited_for(worker, monkeypatch):
    assert render(worker) == "1"
    monkeypatch.setattr(worker_module, "WALL_SECONDS", 0.5)
    monkeypatch.setattr(worker_module, "WALL_PER_SECOND", 0.0)
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


def is_gone(pid):
    """Return whether a process ends within five seconds."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":  # nobody waits for it
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("template", "then"),
    [
        ("x", "request(); os.kill(os.getpid(), 9)"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "threading.Timer(0.3, lambda: os.kill(os.getpid(), 9)).start(); request()",
        ),
    ],
    ids=["idle", "at work"],
)
def test_a_process_ends_with_the_one_that_started_it(template, then):
    code = (
        "import os, sys, threading\n"
        "from vacc_deploy.text.session import Session\n"
        "from vacc_deploy.text.worker import Worker\n"
        "w = Worker('template_job.py', ('jinja2', 'markupsafe'))\n"
        "s = Session(w, sys.argv[1].encode(), seconds=99, num_bytes=1 << 28)\n"
        "s.load()\n"
        "print(w._process.pid, flush=True)\n"
        "def request():\n"
        "    s.request({'op': 'render'}, b'{}', seconds=1, num_bytes=1 << 28, limit=99)\n"
        f"{then}\n"
    )
    command = [sys.executable, "-c", code, template]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == -9
    assert is_gone(int(run.stdout))


def test_a_process_does_not_end_with_the_thread_that_started_it(worker):
    thread = threading.Thread(target=render, args=(worker,))
    thread.start()
    thread.join()
    pid = worker._process.pid
    time.sleep(0.1)
    assert render(worker) == "1" and worker._process.pid == pid


def test_signals_that_are_blocked_or_ignored_here_still_end_it(worker):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU, signal.SIGIO})
    before = signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    try:
        render(worker)
    finally:
        signal.signal(signal.SIGXCPU, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with open(f"/proc/{worker._process.pid}/status") as file:
        values = dict(line.split(":", 1) for line in file)
    bits = 1 << (signal.SIGXCPU - 1) | 1 << (signal.SIGIO - 1)
    assert not int(values["SigBlk"], 16) & bits and not int(values["SigIgn"], 16) & bits


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
    with pytest.raises(ProcessError, match="run cannot be started: .*/nowhere/python.*Free"):
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
    with pytest.raises(ProcessError, match="ends before it answers"):
        one.request({"op": "load"}, b"", seconds=1, num_bytes=1, limit=0)


@pytest.fixture
def failing(tmp_path):
    """Return a function that makes a worker whose job is a program of our own."""
    made = []

    def make(code):
        job = tmp_path / "job.py"
        job.write_text(code, "utf-8")
        one = Worker("template_job.py", ("jinja2",))
        one._job = job
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module", r"\(code 1\): .*ModuleNotFoundError: No module named 'no_such"),
        ("raise SystemExit(3)", r"\(code 3\): it says nothing"),
        ("import sys; sys.exit('x' * 60000)", r"\(code 1\): x+\.\.\.\. Install"),
        ("import os; os.kill(os.getpid(), 11)", r"\(code -11\): it says nothing"),
        ("import os; os.kill(os.getpid(), 9)", r"ended from outside \(SIGKILL\)"),
    ],
)
def test_a_process_that_is_not_ready_blames_no_file(failing, code, said):
    with pytest.raises(ProcessError, match=said) as caught:
        failing(code).request({}, b"", seconds=1, num_bytes=1 << 28, limit=0)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_a_process_that_ends_by_itself_at_work_blames_no_file(failing):
    one = failing("import os\ndef handle(*_):\n    os._exit(4)\n")
    with pytest.raises(ProcessError, match="ended with the code 4. Free memory"):
        one.request({}, b"", seconds=1, num_bytes=1 << 28, limit=0)


def test_a_library_that_writes_errors_without_end_does_not_wait(failing):
    one = failing(
        "import os\ndef handle(*_):\n    os.write(2, b'x' * 999999)\n    return {}, b''\n"
    )
    one.request({}, b"", seconds=1, num_bytes=1 << 28, limit=0)


def test_what_the_process_says_is_one_line_and_short(failing):
    one = failing("def handle(*_):\n    raise ValueError('a\\n\\nError: run this' + 'x' * 9999)\n")
    with pytest.raises(WorkerError) as caught:
        one.request({}, b"", seconds=1, num_bytes=1 << 28, limit=0)
    assert str(caught.value).startswith("a\\n\\nError: run thisxxx")
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    "reply",
    ["{}, b'x' * 100", "{'a': 'x' * (1 << 19)}, b''"],
    ids=["data", "head"],
)
def test_a_reply_that_is_longer_than_it_may_be_is_not_read(failing, monkeypatch, reply):
    monkeypatch.setattr(worker_module, "_MAX_HEAD_BYTES", 1 << 19)
    one = failing(f"def handle(*_):\n    return {reply}\n")
    with pytest.raises(WorkerError, match="gives a longer answer than it may"):
        one.request({}, b"", seconds=1, num_bytes=1 << 28, limit=99)
    assert one._process is None


def test_the_memory_for_a_request_is_not_that_for_its_reply(failing):
    one = failing("def handle(*_):\n    return {'text': 'x' * (8 << 20)}, b'y' * (1 << 20)\n")
    reply, data = one.request({}, b"", seconds=1, num_bytes=12 << 20, limit=1 << 20)
    assert len(reply["text"]) == 8 << 20 and len(data) == 1 << 20
    # Nor is it kept for what comes next.
    assert one.request({}, b"", seconds=1, num_bytes=12 << 20, limit=1 << 20)[1] == data


def test_a_process_without_work_ends_and_gives_its_memory_back():
    entry, child = Path(entry_module.__file__), Path(worker_module.__file__).with_name("child.py")
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('entry', sys.argv[1])\n"
        "entry = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(entry)\n"
        "del sys.argv[1]\n"
        "host = entry.Host()\n"
        "assert host.idle_seconds == 60\n"
        "host.idle_seconds = 0.2\n"
        "entry.main(host)\n"
    )
    files = map(str, (entry, child, child.with_name("template_job.py")))
    folders = {folder_of(name) for name in ("jinja2", "markupsafe")}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, *files, "--", *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(1) == b"\0"
    assert process.wait(timeout=10) == 0
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()


def test_what_a_process_holds_already_counts_for_its_memory(failing, monkeypatch):
    monkeypatch.setattr(worker_module, "WORKER_MEMORY", 400 << 20)
    code = "held = []\ndef handle(*_):\n    held.append(bytearray(90 << 20))\n    return {}, b''\n"
    one = failing(code)
    with pytest.raises(WorkerError, match="needs more than 200 MiB of memory"):
        for _ in range(5):
            one.request({}, b"", seconds=9, num_bytes=200 << 20, limit=0)
    # A new process holds nothing.
    one.request({}, b"", seconds=9, num_bytes=200 << 20, limit=0)
