"""The calibrated quantizer as a whole: beside a slow reference, and what it never does."""

import weakref
from dataclasses import replace

import pytest
import torch
from checkpoint_builders import read_tensors
from doubles import Recorder
from quantize_runs import (
    NUM_HELD_OUT,
    NUM_SHARED,
    RTN,
    SEQ_LEN,
    calibration_rows,
    calibration_tokens,
    gptq_options,
    make_source,
    outlier_tensors,
    write_words,
)
from reference_logits import decoder_logits
from slow_reference import STAGES, Settings, slow_calibration
from texts import read_json

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import QuantizationError
from vacc_deploy.models.config import FINAL_NORM, LM_HEAD
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize import calibrated, plan
from vacc_deploy.quantize import layer_quantizer as layer_module
from vacc_deploy.quantize.calibrated import calibrate_layers
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.decoder import (
    DOWN,
    GATE_UP,
    OUTPUT,
    QKV,
    DecoderLayer,
    Positions,
    embed,
    float_reader,
)
from vacc_deploy.solver import linear as linear_module


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Calibration text of 12,000 random words."""
    return write_words(tmp_path_factory.mktemp("text") / "words.txt")


def float32_options(text, **changes):
    return gptq_options(text, compute_dtype="float32", **changes)


@pytest.fixture
def small_batches(monkeypatch):
    """Three rows at a time, and no memory that may keep the inputs of down_proj."""

    def choose(*arguments):
        return replace(choose_compute(*arguments), batch_tokens=3 * SEQ_LEN, kept_bytes=0)

    monkeypatch.setattr(plan, "choose_compute", choose)


def layers_of(source, options, tmp_path, **finished):
    return calibrate_layers(
        Checkpoint.open(source),
        options,
        calibration_rows(source, options),
        compute=choose_compute(options.device, options.compute_dtype),
        spool_dir=tmp_path,
        clock=PhaseClock(),
        **finished,
    )


# ---- beside the reference ---------------------------------------------------------------------

VARIANTS = {
    "default": {},
    "own-order": {"act_order": False},
    "plain": {"scale_search": False, "shrinkage": 0.0, "dampening_frac": 0.01},
    "strong": {"shrinkage": 0.7, "dampening_frac": 1.0, "act_order": False},
    "search": {"dampening_frac": 0.005},
    "fast": {"effort": "fast"},
}


def check_against_reference(source, text, variant):
    """Quantize ``source`` and compare every code, scale and record; return the result."""
    options = float32_options(text, **VARIANTS[variant])
    result = quantize(source, options=options)
    written, stored = read_tensors(result.output_dir), read_tensors(source)
    values = {name: value for name, value in VARIANTS[variant].items() if name != "effort"}
    if options.effort == "fast":
        settings = Settings(NUM_HELD_OUT, 0, skipped=("down",), **values)
    else:
        settings = Settings(NUM_HELD_OUT, NUM_SHARED, **values)
    tokens = calibration_tokens(source, options)
    expected = slow_calibration(source, tokens, settings, written)
    assert [record.name for record in result.linears] == list(expected)
    for record in result.linears:
        want = expected[record.name]
        codes, scale = (written[f"{record.name}.{end}"] for end in ("weight", "weight_scale"))
        # The order of a sum in float32 moves a rounding here and there, and no more.
        same = scale == want.scale
        assert same.float().mean() >= 0.98
        moved = (codes[same].int() - want.codes[same].int()).abs()
        assert (moved > 0).float().mean() < 0.002 and moved.max() <= 1
        assert record.method == want.method
        if want.error_gptq is None:
            assert record.error_gptq is record.error_rtn is record.dampening_frac is None
            continue
        assert record.dampening_frac == settings.dampening_frac
        assert record.error_gptq == pytest.approx(want.error_gptq, rel=0.01)
        assert record.error_rtn == pytest.approx(want.error_rtn, rel=1e-4)
        assert record.correction == pytest.approx(want.correction, abs=2e-4)
        assert record.scale_shrink == pytest.approx(want.scale_shrink, abs=1e-4)
    for name in stored:
        if name.removesuffix(".weight") not in expected:
            assert torch.equal(written[name].view(torch.uint8), stored[name].view(torch.uint8))
    return result


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantize_gptq_equals_a_slow_reference(tmp_path, text, variant):
    result = check_against_reference(make_source(tmp_path / "model"), text, variant)
    assert sum(record.method == "gptq" for record in result.linears) >= 12
    corrected = [record.name for record in result.linears if record.correction]
    assert len(corrected) == (0 if variant == "fast" else 9)  # all but the first three and down


@pytest.mark.parametrize("variant", ["default", "plain"])
@pytest.mark.parametrize("kind", ["llama", "llama-biases"])
def test_quantize_gptq_of_llama_equals_a_slow_reference(tmp_path, text, kind, variant):
    check_against_reference(make_source(tmp_path / "model", kind), text, variant)


def test_quantize_gptq_in_small_batches_equals_a_slow_reference(tmp_path, text, small_batches):
    check_against_reference(make_source(tmp_path / "model"), text, "default")


def test_quantize_gptq_with_searched_scales_equals_a_slow_reference(tmp_path, text):
    plain = make_source(tmp_path / "plain")
    source = make_source(tmp_path / "model", extra_tensors=outlier_tensors(plain))
    result = check_against_reference(source, text, "search")
    assert sum(record.scale_shrink > 0.005 for record in result.linears) >= 6


def test_quantize_gptq_in_bfloat16_is_about_as_good(tmp_path, text):
    """Judged in float32 by the logits of other text, codes from bfloat16 products lose little."""
    source, errors = make_source(tmp_path / "model"), {}
    # The letters of the calibration text, in another order.
    tokens = torch.randint(64, 90, (8, SEQ_LEN), generator=torch.Generator().manual_seed(3))
    exact = decoder_logits(source, tokens)
    runs = {"rtn": RTN}
    runs |= {dtype: gptq_options(text, compute_dtype=dtype) for dtype in ("float32", "bfloat16")}
    for name, options in runs.items():
        output = quantize(source, options=options, output=tmp_path / name).output_dir
        errors[name] = torch.linalg.norm(decoder_logits(output, tokens) - exact).item()
    assert errors["float32"] != errors["bfloat16"]
    assert errors["bfloat16"] < 1.12 * errors["float32"]
    assert errors["bfloat16"] < 0.8 * errors["rtn"]


# ---- what each stage sees ----------------------------------------------------------------------


def inputs_by_stage(directory, tokens):
    """Return the inputs of every stage of every layer of a checkpoint, float or quantized."""
    checkpoint, seen = Checkpoint.open(directory), []
    positions = Positions.build(checkpoint.config, tokens.shape[1])
    hidden_states = embed(checkpoint, tokens)
    for index in range(checkpoint.config.num_hidden_layers):
        layer = DecoderLayer(checkpoint.config, index, positions, float_reader(checkpoint))
        inputs = {QKV: layer.attention_input(hidden_states)}
        inputs[OUTPUT] = layer.attend(inputs[QKV])
        hidden_states = hidden_states + layer.linear("o_proj")(inputs[OUTPUT])
        inputs[GATE_UP] = layer.mlp_input(hidden_states)
        inputs[DOWN] = layer.activate(inputs[GATE_UP])
        hidden_states = hidden_states + layer.linear("down_proj")(inputs[DOWN])
        seen.append(inputs)
    return seen


def test_quantize_gptq_sees_quantized_and_float_inputs(tmp_path, text, monkeypatch):
    """Every sum is over the outputs of the quantized stages before it, the shift over both."""
    source = make_source(tmp_path / "model", dtype=torch.float32)
    seen, plain = [], layer_module.LayerQuantizer.observe

    def observe(self, batch, inputs, original, **rest):
        kept = None if original is None else original.clone()
        seen.append((batch, inputs.clone(), kept))
        plain(self, batch, inputs, original, **rest)

    monkeypatch.setattr(layer_module.LayerQuantizer, "observe", observe)
    options = float32_options(text)
    output = quantize(source, options=options).output_dir
    tokens = calibration_tokens(source, options)
    kinds = [
        (slice(0, NUM_HELD_OUT), True, True),
        (slice(NUM_HELD_OUT, NUM_HELD_OUT + NUM_SHARED), False, True),
        (slice(NUM_HELD_OUT + NUM_SHARED, len(tokens)), False, False),
    ]
    deployed = [inputs_by_stage(output, tokens[rows]) for rows, _, _ in kinds]
    original = [inputs_by_stage(source, tokens[rows]) for rows, _, _ in kinds]
    order = [
        (layer, stage, number) for layer in range(2) for stage in STAGES for number in range(3)
    ]
    for (layer, stage, number), (batch, got, twin) in zip(order, seen, strict=True):
        assert (batch.rows, batch.is_held_out, batch.has_float_states) == kinds[number]
        assert torch.equal(got, deployed[number][layer][stage])
        if batch.has_float_states and stage != "down":
            assert torch.equal(twin, original[number][layer][stage])
            assert torch.equal(twin, got) is ((layer, stage) == (0, "qkv"))
        else:
            assert twin is None


# ---- never worse than rounding ----------------------------------------------------------------


def test_quantize_gptq_keeps_rounding_in_the_whole_chain(tmp_path, text, monkeypatch):
    """A solver that is always worse leaves exactly the rounded weights."""
    source = make_source(tmp_path / "model")
    plain = linear_module.solve

    def worse(weight, scale, factor, **_):
        solution = plain(weight, scale, factor)
        return type(solution)(-solution.codes, 5)

    monkeypatch.setattr(linear_module, "solve", worse)
    result = quantize(source, options=gptq_options(text), output=tmp_path / "gptq")
    assert {record.method for record in result.linears} == {"rtn"}
    assert all(record.error_gptq > record.error_rtn for record in result.linears)
    assert {record.correction for record in result.linears} == {0.0}
    assert result.totals()["num_saturated"] == 0
    rounded = quantize(source, options=RTN, output=tmp_path / "rtn").output_dir
    got, expected = read_tensors(result.output_dir), read_tensors(rounded)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_quantize_gptq_dead_inputs_are_rounded_with_a_warning(tmp_path, text, monkeypatch):
    """A norm of zeros: the inputs of q, k, v are zero, their Hessian cannot be factored."""
    # Such a norm would be refused at the start; other dead inputs are found by the solver only.
    monkeypatch.setattr("vacc_deploy.quantize.plan.check_weights", lambda *_, **__: ())
    name = "model.layers.1.input_layernorm.weight"
    source = make_source(
        tmp_path / "model", extra_tensors={name: torch.zeros(64, dtype=torch.bfloat16)}
    )
    progress = Recorder()
    result = quantize(source, options=gptq_options(text), progress=progress)
    expected = (
        "3 linears were rounded because their Hessian could not be factored "
        "(first model.layers.1.self_attn.q_proj)"
    )
    assert result.warnings == (expected,) and progress.warnings == [expected]
    assert f"Warning: {expected}" in result.to_text()
    report = read_json(result.output_dir / "quantize_report.json")
    assert report["warnings"] == [expected]
    assert [r.dampening_frac for r in result.linears[7:10]] == [None] * 3


def make_quantizer(checkpoint, clock):
    return layer_module.LayerQuantizer(
        QuantizeOptions("gptq"),
        lambda name: checkpoint.read(name).float(),
        num_held_out_tokens=8,
        dtype=torch.float32,
        clock=clock,
    )


@pytest.mark.parametrize("where", ["fitted", "held out", "float stream", "held-out float stream"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_layer_quantizer_checks_all_its_inputs(tmp_path, where, bad):
    checkpoint = Checkpoint.open(make_source(tmp_path / "model"))
    quantizer = make_quantizer(checkpoint, PhaseClock())
    deployed = torch.randn(4, 8, 64, generator=torch.Generator().manual_seed(0))
    original = deployed + 0.01
    row = 0 if "held" in where else 3
    (original if "float stream" in where else deployed)[row, 2, 5] = bad
    for rows, is_held_out in ((slice(0, 1), True), (slice(1, 4), False)):
        batch = layer_module.Batch(rows, is_held_out, has_float_states=True)
        quantizer.observe(batch, deployed[rows], original[rows])
    positions = Positions.build(checkpoint.config, 8)
    layer = DecoderLayer(checkpoint.config, 0, positions, float_reader(checkpoint))
    with pytest.raises(QuantizationError) as err:
        quantizer.complete("qkv", layer)
    assert str(err.value) == (
        "The inputs of model.layers.0.self_attn.q_proj: the activations hold NaN or infinity. "
        "Weights before it are damaged, or far too large: vacc-deploy verify reads all of them and "
        "names the damaged ones."
    )


# ---- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("effort", ["full", "fast"])
def test_calibrate_layers_carried_through_finished_ones_gives_the_same_bits(
    tmp_path, text, dtype, effort
):
    source = make_source(tmp_path / "model", num_layers=3)
    options = gptq_options(text, compute_dtype=dtype, effort=effort)
    whole = list(layers_of(source, options, tmp_path))
    finished = {linear.name: linear for layer in whole for linear in layer.linears}

    def read(name):
        assert name.split(".")[2] in ("0", "1")
        return finished[name].codes, finished[name].scale

    *passed, last = layers_of(source, options, tmp_path, num_finished=2, read_finished=read)
    assert passed == [None, None]
    assert last.index == 2 and last.records == whole[2].records
    for got, want in zip(last.linears, whole[2].linears, strict=True):
        assert torch.equal(got.codes, want.codes) and torch.equal(got.scale, want.scale)


# ---- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_carried", [0, 4])
def test_calibrate_layers_memory_does_not_grow_with_the_layers(
    tmp_path, text, monkeypatch, num_carried
):
    """Two layers of stored weights, one of them being computed; no layer made before."""
    source = make_source(tmp_path / "model", num_layers=6, dtype=torch.float32)
    options = float32_options(text)
    read_whole, tensors, sizes = Checkpoint.read, [], []
    layers, most_layers = weakref.WeakSet(), []
    results, results_alive = weakref.WeakSet(), []

    def read(self, name):
        tensor = read_whole(self, name)
        tensors.append(weakref.ref(tensor))
        sizes.append(sum(t.numel() for t in (ref() for ref in tensors) if t is not None))
        return tensor

    class CountedLayer(DecoderLayer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            layers.add(self)
            most_layers.append(len(layers))
            results_alive.append(len(results))

    finished = {}
    if num_carried:
        for layer in layers_of(source, options, tmp_path):
            finished |= {linear.name: (linear.codes, linear.scale) for linear in layer.linears}
        del layer
    monkeypatch.setattr(Checkpoint, "read", read)
    monkeypatch.setattr(calibrated, "DecoderLayer", CountedLayer)
    found = {"num_finished": num_carried, "read_finished": finished.__getitem__}
    for layer in layers_of(source, options, tmp_path, **found):
        if layer is not None:
            results.add(layer)
        del layer
    names = Checkpoint.open(source).config.layer_tensors(0)
    assert max(sizes) <= 2 * sum(read_tensors(source)[name].numel() for name in names)
    assert len(sizes) == 6 * len(names)
    assert most_layers == [1] * 6 and results_alive == [0] * 6
    assert all(ref() is None for ref in tensors)


def test_quantize_never_reads_the_embedding_or_the_head_whole(tmp_path, text, monkeypatch):
    plain, names = Checkpoint.read, []
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, name: names.append(name) or plain(self, name)
    )
    quantize(make_source(tmp_path / "model"), options=gptq_options(text))
    assert names and not {"model.embed_tokens.weight", LM_HEAD, FINAL_NORM} & set(names)
