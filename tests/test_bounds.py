"""Every bound on a stranger's file: tried at its edge, and printed in ``docs/security.md``."""

import importlib.util
from pathlib import Path

import pytest
from security_page import PAGE, all_bounds, put_into, render

from vacc_deploy import bounds
from vacc_deploy.bounds import Bound
from vacc_deploy.errors import VaccDeployError

BOUNDS = all_bounds()


def load_edges():
    """Return the edges of all files of ``tests/bounds_edges``: name of a bound to its function."""
    edges = {}
    for path in sorted((Path(__file__).parent / "bounds_edges").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"bounds_edges_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        edges.update(module.EDGES)
    return edges


EDGES = load_edges()


def test_every_bound_has_an_edge_and_every_edge_a_bound():
    assert sorted(EDGES) == sorted(BOUNDS)


@pytest.mark.parametrize("name", sorted(EDGES))
def test_at_the_bound_accepted_and_one_above_refused(tmp_path, name):
    (tmp_path / "at").mkdir()
    (tmp_path / "over").mkdir()
    EDGES[name](tmp_path / "at", over=False)
    with pytest.raises(VaccDeployError) as caught:
        EDGES[name](tmp_path / "over", over=True)
    assert len(str(caught.value)) < 2000


def test_the_page_prints_every_bound():
    page = PAGE.read_text("utf-8")
    assert put_into(page) == page, "run: make bounds"
    assert all(f"`{name}`" in render() for name in BOUNDS)


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_bound_says_what_it_bounds_and_what_is_usual(name):
    bound = BOUNDS[name]
    assert bound.what and bound.usual and "|" not in bound.what + bound.usual + bound.unit


def test_a_bound_computes_and_prints_as_its_number():
    bound = Bound(1 << 20, "bytes", "a file", "1 kB")
    assert bound + 1 == 1048577 and f"{bound:,} {bound}" == "1,048,576 1048576"


def test_the_record_of_the_largest_layer_can_be_read_again():
    """Else --resume would make every layer of such a model again."""
    hidden, intermediate = bounds.HIDDEN_SIZE, bounds.INTERMEDIATE_SIZE
    # q, k, v, o and down have at most as many rows as the hidden state, gate and up the other size.
    rows = 5 * hidden + 2 * intermediate
    scales = rows * 2 * 4 // 3  # float16 in base64
    assert scales + (64 << 10) <= bounds.RUN_RECORD_BYTES  # the rest: names, hashes, errors
