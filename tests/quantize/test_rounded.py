"""``round_layers``: order, look-ahead, memory and errors of the threads that round."""

import threading
import weakref

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, QuantizationError
from vacc_deploy.formats.int8 import pin_largest, quantize_rounding
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.quantize import rounded
from vacc_deploy.quantize.rounded import round_layers
from vacc_deploy.solver import RTN
from vacc_deploy.solver.records import LinearRecord

UP = "model.layers.{}.mlp.up_proj.weight"


def open_checkpoint(directory, num_layers=3, **arguments):
    return Checkpoint.open(write_checkpoint(directory, num_layers=num_layers, **arguments))


def with_bad_rows(directory, layer, rows, num_layers=3):
    weight = torch.full((160, 64), 0.01, dtype=torch.bfloat16)
    for row in rows:
        weight[row, 5] = float("nan")
    return open_checkpoint(directory, num_layers, extra_tensors={UP.format(layer): weight})


def rounding_threads():
    return [t for t in threading.enumerate() if t.name.startswith("rounding")]


@pytest.fixture
def count_reads(monkeypatch):
    """Return the tensors' names in the order in which their rows are read."""
    names, plain = [], Checkpoint.read_slice

    def read_slice(self, name, start, stop):
        names.append(name)
        return plain(self, name, start, stop)

    monkeypatch.setattr(Checkpoint, "read_slice", read_slice)
    return names


@pytest.mark.parametrize("piece", [1, 100, 64 * 64, 1 << 22])
@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_round_layers_equals_rounding_each_weight(tmp_path, monkeypatch, piece, cores, dtype):
    monkeypatch.setattr(rounded, "_PIECE_WEIGHTS", piece)
    monkeypatch.setattr(rounded, "num_cores", lambda: cores)
    checkpoint = open_checkpoint(tmp_path / "model", dtype=dtype)
    stored = read_tensors(checkpoint.directory)
    # All layers are held together: none may lie in the memory of another.
    layers = list(round_layers(checkpoint))
    assert [layer.index for layer in layers] == [0, 1, 2]
    for layer in layers:
        names = [linear_name(layer.index, linear) for linear in LAYER_LINEARS]
        assert [linear.name for linear in layer.linears] == names
        assert layer.records == tuple(LinearRecord(name, RTN) for name in names)
        for linear in layer.linears:
            codes, scale = quantize_rounding(stored[f"{linear.name}.weight"])
            assert torch.equal(linear.codes, codes) and torch.equal(linear.scale, scale)
            assert (linear.codes.dtype, linear.scale.dtype) == (torch.int8, torch.float16)
    assert not rounding_threads()


@pytest.mark.parametrize("piece", [64, 7 * 64, 1 << 22])
def test_round_layers_gives_rows_of_tiny_weights_their_largest_code(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(rounded, "_PIECE_WEIGHTS", piece)
    # Scales from 0.5 to 200 steps of the smallest float16: few digits, then enough of them.
    steps = torch.linspace(0.5, 200, 160)
    weight = torch.randn(160, 64, generator=torch.Generator().manual_seed(1))
    weight *= (127 * 2.0**-24 * steps / weight.abs().amax(1))[:, None]
    weight[3] = 0
    name = UP.format(0)
    checkpoint = open_checkpoint(tmp_path / "model", 1, extra_tensors={name: weight})
    (layer,) = round_layers(checkpoint)
    (got,) = [linear for linear in layer.linears if f"{linear.name}.weight" == name]
    codes, scale = quantize_rounding(weight)
    pinned, num_rows = pin_largest(weight, codes, scale)
    assert num_rows > 10 and torch.equal(got.codes, pinned) and torch.equal(got.scale, scale)
    assert set(got.codes.abs().amax(1).tolist()) == {0, 127}


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_round_layers_begins_at_first(tmp_path, count_reads, first):
    checkpoint = open_checkpoint(tmp_path / "model")
    assert [layer.index for layer in round_layers(checkpoint, first)] == list(range(first, 3))
    earlier = {f"model.layers.{layer}." for layer in range(first)}
    assert not [name for name in count_reads if name.startswith(tuple(earlier))]


def test_round_layers_looks_one_layer_ahead(tmp_path, count_reads):
    checkpoint = open_checkpoint(tmp_path / "model", num_layers=6)
    for layer in round_layers(checkpoint):
        begun = {int(name.split(".")[2]) for name in tuple(count_reads)}
        assert max(begun) <= layer.index + 1


def test_round_layers_memory_does_not_grow_with_the_layers(tmp_path):
    checkpoint = open_checkpoint(tmp_path / "model", num_layers=9)
    places = {layer.linears[0].codes.data_ptr() for layer in round_layers(checkpoint)}
    # The layer in hand, the one that is waited for, and the one ahead.
    assert len(places) <= 3
    kept = [layer.linears[-1].codes for layer in round_layers(checkpoint)]
    assert len({codes.data_ptr() for codes in kept}) == 9


def test_round_layers_holds_a_piece_for_each_core(tmp_path, monkeypatch):
    plain, live, most = Checkpoint.read_slice, [], []

    def read_slice(self, name, start, stop):
        assert (stop - start) * self.info(name).shape[1] <= 1024
        piece = plain(self, name, start, stop)
        live.append(weakref.ref(piece))
        most.append(sum(ref() is not None for ref in tuple(live)))
        return piece

    monkeypatch.setattr(Checkpoint, "read_slice", read_slice)
    monkeypatch.setattr(rounded, "_PIECE_WEIGHTS", 1024)
    monkeypatch.setattr(rounded, "num_cores", lambda: 2)
    for _ in round_layers(open_checkpoint(tmp_path / "model")):
        pass
    assert max(most) <= 2


@pytest.mark.parametrize("cores", [1, 4])
def test_round_layers_non_finite_weight_names_the_first_row(tmp_path, monkeypatch, cores):
    monkeypatch.setattr(rounded, "_PIECE_WEIGHTS", 640)
    monkeypatch.setattr(rounded, "num_cores", lambda: cores)
    checkpoint = with_bad_rows(tmp_path / "model", 1, (33, 137, 159))
    layers = round_layers(checkpoint)
    assert next(layers).index == 0
    with pytest.raises(QuantizationError) as err:
        next(layers)
    assert str(err.value) == (
        f"{UP.format(1)} in {checkpoint.directory}: row 33 holds NaN or infinity. Download the "
        "file model.safetensors again. If the new one holds the same, the training or the merge "
        "that wrote it went wrong: make the model again."
    )
    assert not rounding_threads()


def test_round_layers_error_stops_the_pieces_that_wait(tmp_path, monkeypatch, count_reads):
    monkeypatch.setattr(rounded, "_PIECE_WEIGHTS", 64)
    monkeypatch.setattr(rounded, "num_cores", lambda: 1)
    gate, plain = threading.Event(), rounded.round_rows

    def round_rows(*arguments):
        # The second layer waits until the error of the first one is on its way.
        if any(name.startswith("model.layers.1.") for name in count_reads):
            gate.wait(0.3)
        plain(*arguments)

    monkeypatch.setattr(rounded, "round_rows", round_rows)
    checkpoint = with_bad_rows(tmp_path / "model", 0, (0,), num_layers=2)
    with pytest.raises(QuantizationError, match="row 0 holds NaN"):
        list(round_layers(checkpoint))
    pieces = sum(checkpoint.config.linear_shape(linear)[0] for linear in LAYER_LINEARS)
    assert len(count_reads) < pieces + 5
    assert not rounding_threads()


def test_round_layers_shortened_file_is_named(tmp_path):
    checkpoint = open_checkpoint(tmp_path / "model")
    path = checkpoint.directory / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        list(round_layers(checkpoint))
    assert not rounding_threads()


def test_round_layers_closed_early_leaves_no_threads(tmp_path):
    layers = round_layers(open_checkpoint(tmp_path / "model"))
    next(layers)
    assert rounding_threads()
    layers.close()
    assert not rounding_threads()
