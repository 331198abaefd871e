"""Every reader with its corpus, with every input that was a finding, and with near-valid inputs."""

import pytest
from files import clear
from hypothesis import HealthCheck, Phase, given, settings
from sandbox import FindingError, Sandbox
from strategies import near_valid
from targets import CORPUS, REGRESSIONS, TARGETS

from vacc_deploy.errors import CheckpointError

NAMES = sorted(TARGETS)
_QUICK = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def box():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(params=NAMES)
def target(request, box):
    target = TARGETS[request.param]
    function = target.load()
    clear(box.directory)
    # Once without the watch: a reader imports its libraries when it first needs them.
    for data in target.inputs():
        try:
            function(data, box.directory)
        except Exception as err:
            assert type(err).__module__ == "vacc_deploy.errors"
    yield lambda data: box.execute(function, data, allowed=target.allowed)
    clear(box.directory)


def test_inputs_of_the_corpus(target, request):
    for data in TARGETS[request.node.callspec.params["target"]].inputs():
        target(data)


def test_near_valid_inputs(target, request):
    name = request.node.callspec.params["target"]

    @_QUICK
    @given(near_valid(name))
    def check(data):
        target(data)

    check()


def test_corpus_is_small_and_belongs_to_the_targets():
    folders = [*CORPUS.iterdir(), *REGRESSIONS.iterdir()]
    assert {folder.name for folder in CORPUS.iterdir()} == set(NAMES)
    assert {folder.name for folder in folders} <= set(NAMES)
    assert sum(p.stat().st_size for folder in folders for p in folder.iterdir()) < 200_000


def test_watch_sees_a_file_outside(box, tmp_path):
    def read(data, directory):
        (directory / "a").write_bytes(data)
        try:
            (tmp_path / "a").open("w")
        except Exception:
            pytest.fail("the watch is an ordinary exception")

    with pytest.raises(FindingError, match="escape: open"):
        box.execute(read, b"")


def test_watch_sees_an_import_and_a_caught_escape(box):
    def import_new(data, directory):
        try:
            import this  # noqa: F401
        except BaseException:
            return

    with pytest.raises(FindingError, match="escape: import"):
        box.execute(import_new, b"")


def test_watch_sees_what_takes_too_long(box, monkeypatch):
    monkeypatch.setattr("sandbox.SECONDS", 0.0)
    with pytest.raises(FindingError, match="slow"):
        box.execute(lambda data, directory: sum(range(1_000_000)), b"")


def test_watch_sees_another_error_and_a_long_message(box):
    with pytest.raises(KeyError):
        box.execute(lambda data, directory: {}["a"], b"")

    def complain(data, directory):
        raise CheckpointError("a" * 50_001)

    with pytest.raises(FindingError, match="message: 50,001 characters"):
        box.execute(complain, b"")
