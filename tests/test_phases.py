"""Seconds by phase, on a clock that the test moves."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from vacc_deploy.phases import PhaseClock


class Hand:
    """A clock that moves only when it is moved."""

    seconds = 100.0

    def __call__(self):
        return self.seconds

    def wait(self, seconds):
        self.seconds += seconds


@pytest.fixture
def hand():
    return Hand()


@pytest.fixture
def clock(hand):
    return PhaseClock(now=hand)


def test_phase_clock_adds_up_by_name_in_the_order_of_first_use(clock, hand):
    for name, seconds in (("read", 1.0), ("forward", 2.0), ("read", 0.25)):
        with clock.phase(name):
            hand.wait(seconds)
        hand.wait(50)  # between phases, nobody's
    assert clock.to_dict() == {"read": 1.25, "forward": 2.0}
    assert list(clock.to_dict()) == ["read", "forward"]


def test_phase_clock_takes_inner_time_out_of_the_outer(clock, hand):
    with clock.phase("layer"):
        hand.wait(1)
        with clock.phase("solve"):
            hand.wait(10)
            with clock.phase("compare"):
                hand.wait(100)
        hand.wait(2)
        with clock.phase("layer"):
            hand.wait(4)
    assert clock.to_dict() == {"layer": 7.0, "solve": 10.0, "compare": 100.0}


def test_phase_clock_keeps_the_time_of_a_block_that_fails(clock, hand):
    with pytest.raises(ValueError, match="broken"), clock.phase("outer"), clock.phase("inner"):
        hand.wait(3)
        raise ValueError("broken")
    with clock.phase("next"):
        hand.wait(1)
    assert clock.to_dict() == {"outer": 0.0, "inner": 3.0, "next": 1.0}


def test_phase_clock_rounds_to_milliseconds_and_names_an_empty_phase(clock, hand):
    assert clock.to_dict() == {}
    with clock.phase("a"):
        hand.wait(1.23456)
    with clock.phase("b"):
        assert clock.to_dict() == {"a": 1.235, "b": 0.0}


def test_phase_clock_synchronizes_at_both_edges_before_it_reads_the_time(hand):
    """Work that a device still has to do when a block ends belongs to that block."""
    queued = [0.0]

    def synchronize():
        hand.wait(queued[0])
        queued[0] = 0.0

    clock = PhaseClock(synchronize, now=hand)
    queued[0] = 8.0  # given before the phase: must not count
    with clock.phase("forward"):
        queued[0] = 5.0
    assert clock.to_dict() == {"forward": 5.0}


def test_phase_clock_refuses_another_thread(clock):
    with ThreadPoolExecutor() as pool:
        entered = pool.submit(clock.phase("write").__enter__)
        with pytest.raises(RuntimeError, match="'write' was entered by a thread that is not the"):
            entered.result()
    assert clock.to_dict() == {}
