"""Layers read one ahead: their order, their dtypes, and what an error leaves behind."""

import threading
import time
import weakref

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.layer_weights import read_layers

CPU = choose_compute("cpu", "float32")
HALF = choose_compute("cpu", "bfloat16")
NUM_LAYERS = 5


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_checkpoint(
        tmp_path_factory.mktemp("layers") / "model", num_layers=NUM_LAYERS, dtype=torch.float16
    )


def reader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("layer-reader")]


def layer_of(name):
    return int(name.split(".")[2])


class SpyCheckpoint:
    """Passes on what is asked of a checkpoint, and remembers it."""

    def __init__(self, directory, fail_at=None):
        self._checkpoint, self._fail_at = Checkpoint.open(directory), fail_at
        self.config, self.names, self.tensors, self.threads = self._checkpoint.config, [], [], set()

    def read(self, name):
        self.names.append(name)
        self.threads.add(threading.current_thread().name)
        if layer_of(name) == self._fail_at:
            raise CheckpointError(f"{name} is cut off")
        tensor = self._checkpoint.read(name)
        self.tensors.append((layer_of(name), weakref.ref(tensor)))
        return tensor

    def layers_read(self):
        return sorted({layer_of(name) for name in self.names})

    def layers_alive(self):
        return sorted({layer for layer, ref in self.tensors if ref() is not None})


def wait_for(condition):
    """Wait for what another thread does; a test that needs longer has failed."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_read_layers_yields_every_layer_in_order_with_its_tensors(source):
    checkpoint, stored = Checkpoint.open(source), read_tensors(source)
    seen = []
    for weights in read_layers(checkpoint, HALF):
        seen.append(weights.index)
        for name in checkpoint.config.layer_tensors(weights.index):
            assert torch.equal(weights.read(name), stored[name].bfloat16())
            assert weights.read(name).dtype == torch.bfloat16
            exact = weights.read_exact(name)
            assert exact.dtype == torch.float32 and torch.equal(exact, stored[name].float())
    assert seen == list(range(NUM_LAYERS))
    assert reader_threads() == []


def test_read_layers_reads_one_ahead_and_no_more_in_a_thread_of_its_own(source):
    spy = SpyCheckpoint(source)
    per_layer = len(spy.config.layer_tensors(0))
    layers = read_layers(spy, CPU)
    assert spy.names == []
    for index in range(NUM_LAYERS):
        weights = next(layers)
        last = min(index + 1, NUM_LAYERS - 1)
        wait_for(lambda last=last: len(spy.names) == (last + 1) * per_layer)
        time.sleep(0.02)  # a reader that went on would be seen
        assert spy.layers_read() == list(range(last + 1))
        assert spy.layers_alive() == list(range(index, last + 1))
        del weights
    assert all(name.startswith("layer-reader") for name in spy.threads)
    assert next(layers, None) is None and spy.layers_alive() == []
    assert len(spy.names) == NUM_LAYERS * per_layer


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_read_layers_error_in_the_thread_comes_with_its_layer(source, fail_at):
    spy, seen = SpyCheckpoint(source, fail_at), []
    with pytest.raises(CheckpointError, match=f"^model.layers.{fail_at}.* is cut off$"):
        for weights in read_layers(spy, CPU):
            seen.append(weights.index)
    assert seen == list(range(fail_at))
    assert reader_threads() == []


def test_read_layers_left_early_leaves_no_thread(source):
    layers = read_layers(SpyCheckpoint(source), CPU)
    next(layers)
    assert len(reader_threads()) == 1
    layers.close()
    assert reader_threads() == []
