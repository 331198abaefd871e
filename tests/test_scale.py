"""The work of a command grows with the number of tensors and files, not with its square.

Counted are calls of functions, not seconds: the count is the same in every run.
"""

import sys
from functools import partial

import pytest
from checkpoint_builders import write_checkpoint

from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_heads": 2, "num_kv_heads": 1}


def count_calls(work):
    """Return how many functions, of Python and of C, are called in ``work``."""
    count = 0

    def see(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def open_and_prepare(source, output):
    prepare(source, output=output, link_mode="copy")


def round_weights(source, output):
    quantize(source, options=QuantizeOptions("rtn", formats=("int8",)), output=output)


@pytest.mark.parametrize("work", [open_and_prepare, round_weights])
def test_a_layer_costs_the_same_calls_among_few_as_among_many(tmp_path, work):
    counts, sizes = [], (1, 16, 64)
    for number, layers in enumerate(sizes):
        source, output = tmp_path / f"source-{number}", tmp_path / f"out-{number}"
        write_checkpoint(source, num_layers=layers, shards=max(2, layers), **SMALL)
        counts.append(count_calls(partial(work, source, output)))
    few, many = (
        (counts[i + 1] - counts[i]) / (sizes[i + 1] - sizes[i]) for i in range(2)
    )  # calls for one more layer
    assert many < 1.2 * few, counts
