"""Hypothesis strategies: near-valid inputs of each target, made by the mutations of the fuzzer."""

from hypothesis import strategies as st
from mutations import mutate
from targets import TARGETS


def near_valid(name: str) -> st.SearchStrategy[bytes]:
    """Return inputs of a target: one of its corpus, changed at random places."""
    seeds = st.sampled_from(TARGETS[name].inputs())
    return st.builds(mutate, seeds, st.randoms(use_true_random=False))
