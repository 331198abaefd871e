"""How many layers wait for the writers, and what they hold meanwhile."""

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch

from vacc_deploy.formats.layouts import INT8
from vacc_deploy.quantize.shards import MAX_PENDING_LAYERS, NUM_WRITERS, ShardSink
from vacc_deploy.solver import GPTQ, RTN
from vacc_deploy.solver.records import LinearRecord, QuantizedLayer, QuantizedLinear

NAME = "model.layers.{}.mlp.up_proj"
WAIT_SECONDS = 10


@pytest.fixture
def disk():
    """Let writes begin, and end when ``is_free`` is set."""
    begun, is_free = threading.Semaphore(0), threading.Event()

    def write(path, tensors):
        begun.release()
        assert is_free.wait(WAIT_SECONDS)
        return SimpleNamespace(num_bytes=1, sha256=path.name)

    yield SimpleNamespace(begun=begun, is_free=is_free, write=write)
    is_free.set()


@pytest.fixture
def run(tmp_path):
    records = []
    return SimpleNamespace(
        partial=tmp_path,
        formats=(INT8,),
        num_layers=20,
        written={},
        add=records.append,
        records=records,
    )


def make_layer(index, *, is_calibrated):
    name = NAME.format(index)
    linear = QuantizedLinear(name, torch.ones(4, 4, dtype=torch.int8), torch.ones(4).half())
    error = 0.1 if is_calibrated else None
    record = LinearRecord(name, GPTQ if is_calibrated else RTN, error, error)
    return QuantizedLayer(index, (linear,), (record,))


def put_in_thread(sink, layer):
    thread = threading.Thread(target=sink.put, args=(layer.index + 1, {}, layer))
    thread.start()
    return thread


def test_calibrated_layers_that_wait_for_the_disk_are_few(run, disk):
    with ShardSink(run, num_writers=8, write=disk.write) as sink:
        for shard in (0, 21):
            sink.put(shard, {})
        for index in range(MAX_PENDING_LAYERS):
            sink.put(index + 1, {}, make_layer(index, is_calibrated=True))
        late = put_in_thread(sink, make_layer(MAX_PENDING_LAYERS, is_calibrated=True))
        late.join(0.2)
        assert late.is_alive()
        disk.is_free.set()
        late.join(WAIT_SECONDS)
        assert not late.is_alive()
    assert len(run.records) == 2 + MAX_PENDING_LAYERS + 1


def test_rounded_layers_use_every_writer(run, disk):
    with ShardSink(run, num_writers=8, write=disk.write) as sink:
        for index in range(8):
            thread = put_in_thread(sink, make_layer(index, is_calibrated=False))
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()
        # All of them at the same time.
        for _ in range(8):
            assert disk.begun.acquire(timeout=WAIT_SECONDS)
        disk.is_free.set()
    assert len(run.records) == 8


def test_a_layer_under_way_to_the_disk_holds_no_tensor_of_the_device(run, disk):
    def copy(linear):
        return QuantizedLinear(linear.name, linear.codes.clone(), linear.scale.clone())

    with ShardSink(run, write=disk.write, to_host=copy) as sink:
        layer = make_layer(0, is_calibrated=True)
        made = [weakref.ref(linear.codes) for linear in layer.linears]
        sink.put(1, {}, layer)
        del layer
        assert disk.begun.acquire(timeout=WAIT_SECONDS)
        gc.collect()
        assert [codes() for codes in made] == [None]
        disk.is_free.set()
    assert [record.records[0].name for record in run.records] == [NAME.format(0)]


def test_every_shard_that_is_taken_has_a_writer():
    """Then none waits in a queue with its tensors still on the device."""
    assert 2 < MAX_PENDING_LAYERS + 1 <= NUM_WRITERS
