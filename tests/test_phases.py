"""Seconds by phase, on a clock that the test moves."""

import threading

import pytest

from vacc_deploy import phases
from vacc_deploy.phases import PhaseClock


class FakeTime:
    """Stands for ``time``: the counter moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def fake_time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(phases, "time", fake)
    return fake


def test_phase_clock_adds_up_by_name_in_the_order_of_first_use(fake_time):
    clock = PhaseClock()
    for name, seconds in (("read", 1.0), ("forward", 2.0), ("read", 0.25)):
        with clock.phase(name):
            fake_time.wait(seconds)
        fake_time.wait(50)  # between phases, nobody's
    assert clock.to_dict() == {"read": 1.25, "forward": 2.0}
    assert list(clock.to_dict()) == ["read", "forward"]


def test_phase_clock_takes_inner_time_out_of_the_outer(fake_time):
    clock = PhaseClock()
    with clock.phase("layer"):
        fake_time.wait(1)
        with clock.phase("solve"):
            fake_time.wait(10)
            with clock.phase("compare"):
                fake_time.wait(100)
        fake_time.wait(2)
        with clock.phase("layer"):
            fake_time.wait(4)
    assert clock.to_dict() == {"layer": 7.0, "solve": 10.0, "compare": 100.0}


def test_phase_clock_keeps_the_time_of_a_block_that_fails(fake_time):
    clock = PhaseClock()
    with pytest.raises(ValueError, match="broken"), clock.phase("outer"), clock.phase("inner"):
        fake_time.wait(3)
        raise ValueError("broken")
    with clock.phase("next"):
        fake_time.wait(1)
    assert clock.to_dict() == {"outer": 0.0, "inner": 3.0, "next": 1.0}


def test_phase_clock_rounds_to_milliseconds_and_names_an_empty_phase(fake_time):
    clock = PhaseClock()
    assert clock.to_dict() == {}
    with clock.phase("a"):
        fake_time.wait(1.23456)
    with clock.phase("b"):
        assert clock.to_dict() == {"a": 1.235, "b": 0.0}


def test_phase_clock_synchronizes_at_both_edges_before_it_reads_the_time(fake_time):
    """Work that a device still has to do when a block ends belongs to that block."""
    queued = [0.0]

    def synchronize():
        fake_time.wait(queued[0])
        queued[0] = 0.0

    clock = PhaseClock(synchronize)
    queued[0] = 8.0  # given before the phase: must not count
    with clock.phase("forward"):
        queued[0] = 5.0
    assert clock.to_dict() == {"forward": 5.0}


def test_phase_clock_refuses_another_thread(fake_time):
    clock, errors = PhaseClock(), []

    def enter():
        try:
            with clock.phase("write"):
                fake_time.wait(1)
        except RuntimeError as err:
            errors.append(str(err))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert errors == ["phase 'write' was entered by a thread that is not the clock's"]
    assert clock.to_dict() == {}


def test_phase_clock_measures_real_time():
    clock = PhaseClock()
    with clock.phase("sleep"):
        threading.Event().wait(0.02)
    assert 0.015 < clock.to_dict()["sleep"] < 10
