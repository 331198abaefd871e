"""``quantize`` end to end on tiny checkpoints: the tensors, the files beside them, and failures."""

import hashlib
import importlib.util
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_builders import read_tensors
from doubles import Recorder
from quantize_runs import (
    HEADS,
    NUM_HELD_OUT,
    NUM_SAMPLES,
    RTN,
    SEQ_LEN,
    calibration_tokens,
    gptq_options,
    make_source,
    write_words,
)
from reference_logits import decoder_logits
from safetensors.torch import load_file
from texts import SOURCE_DIR, contents, sha256
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import (
    CalibrationError,
    CheckpointError,
    OutputError,
    QuantizationError,
    UsageError,
)
from vacc_deploy.formats.int8 import quantize_rounding
from vacc_deploy.models.config import LAYER_LINEARS, LM_HEAD, linear_name
from vacc_deploy.models.directory_config import INT8_GUARD
from vacc_deploy.prepare import prepare
from vacc_deploy.progress import SILENT, KeptLayers
from vacc_deploy.quantize import rows as rows_module
from vacc_deploy.quantize import run as run_module
from vacc_deploy.quantize import shards
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.plan import plan_run
from vacc_deploy.quantize.ranks import ALONE
from vacc_deploy.quantize.run import execute, quantize


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Calibration text of 12,000 random words."""
    return write_words(tmp_path_factory.mktemp("text") / "words.txt")


def read_json(path):
    # parse_constant: NaN and Infinity are no JSON.
    return json.loads(path.read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))


# ---- what is written --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantize_rtn_writes_codes_scales_and_the_rest_byte_for_byte(tmp_path, kind, dtype):
    source = make_source(tmp_path / "model", kind, dtype=dtype, shards=3)
    before = contents(source)
    result = quantize(source, options=RTN)
    assert result.output_dir == tmp_path / "model-int8-codes"
    stored, written = read_tensors(source), read_tensors(result.output_dir)
    linears = {linear_name(layer, name) for layer in range(2) for name in LAYER_LINEARS}
    scales = {f"{name}.weight_scale" for name in linears}
    assert written.keys() == stored.keys() | scales
    for name, tensor in written.items():
        module = name.rpartition(".")[0]
        if name in scales:
            assert tensor.dtype == torch.float16
            assert torch.equal(tensor, quantize_rounding(stored[f"{module}.weight"])[1])
        elif module in linears and name.endswith(".weight"):
            assert tensor.dtype == torch.int8
            assert torch.equal(tensor, quantize_rounding(stored[name])[0])
        else:
            assert tensor.dtype == stored[name].dtype == dtype
            assert torch.equal(tensor.view(torch.uint8), stored[name].view(torch.uint8))
    assert contents(source) == before
    assert result.output_bytes == Checkpoint.open(result.output_dir).weight_bytes


@pytest.mark.parametrize("tied", [False, True])
def test_quantize_layout_of_shards_and_index(tmp_path, tied):
    source = make_source(tmp_path / "model", num_layers=3, tied=tied)
    output = quantize(source, options=RTN).output_dir
    names = [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert sorted(path.name for path in output.glob("*.safetensors")) == names
    index = read_json(output / "model.safetensors.index.json")
    for idx, name in enumerate(names):
        held = load_file(output / name).keys()
        assert held == {tensor for tensor, file in index["weight_map"].items() if file == name}
        if 0 < idx < 4:
            assert all(tensor.startswith(f"model.layers.{idx - 1}.") for tensor in held)
    total = sum(t.numel() * t.element_size() for t in read_tensors(output).values())
    assert index["metadata"]["total_size"] == total
    assert (LM_HEAD in index["weight_map"]) is not tied


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_quantize_manifest_hashes_every_file(tmp_path, text, kind, method):
    source = make_source(tmp_path / "model", kind)
    options = RTN if method == "rtn" else gptq_options(text)
    output = quantize(source, options=options).output_dir
    manifest = read_json(output / "vacc_deploy.json")
    names = {path.name for path in output.iterdir()}
    assert manifest["files"].keys() == names - {"vacc_deploy.json", "quantize_timing.json"}
    for name, entry in manifest["files"].items():
        path = output / name
        assert entry == {"bytes": path.stat().st_size, "sha256": sha256(path)}
    assert manifest["command"] == "quantize"
    assert manifest["source"] == {"path": "../model"}
    assert manifest["options"] == options.to_dict()
    own = {"config_vacc.json", "modeling_qwen2_vacc.py", "configuration_qwen2_vacc.py"}
    assert (own | {"quantization_vacc.py"} <= names) is (kind != "llama")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (output / name).read_bytes() == (source / name).read_bytes()
    for path in output.glob("*_vacc.py"):
        assert path.read_bytes() == (SOURCE_DIR / path.name).read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_quantize_report_of_gptq(tmp_path, text):
    source = make_source(tmp_path / "model")
    result = quantize(source, options=gptq_options(text))
    report = read_json(result.output_dir / "quantize_report.json")
    expected = [linear_name(layer, name) for layer in range(2) for name in LAYER_LINEARS]
    assert [linear["name"] for linear in report["linears"]] == expected
    for linear in report["linears"]:
        assert linear["method"] == "gptq" if linear["error_gptq"] < linear["error_rtn"] else "rtn"
        assert 0 < linear["error_gptq"] < 0.05 and 0 < linear["error_rtn"] < 0.05
        assert linear["dampening_frac"] == 0.1
        assert 0 <= linear["correction"] <= 0.75 and 0 <= linear["scale_shrink"] <= 0.2
        assert isinstance(linear["num_saturated"], int) and isinstance(linear["num_pinned"], int)
    calibration = report["calibration"]
    assert calibration["tokens"] == NUM_SAMPLES * SEQ_LEN
    assert calibration["sources"][0]["sha256"] == sha256(text)
    assert calibration["sources"][0]["file"] == "words.txt"
    assert calibration["fit_tokens"] == 22 * SEQ_LEN
    assert calibration["widest_in_features"] == 160
    assert calibration["fit_tokens_per_in_feature"] == 4.4
    # Hashed with the held-out rows last, as in every report before.
    tokens = calibration_tokens(source, gptq_options(text)).roll(-NUM_HELD_OUT, 0)
    digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    assert calibration["tokens_sha256"] == digest
    kept = [linear for linear in report["linears"] if linear["method"] == "gptq"]
    ratios = [linear["error_gptq"] / linear["error_rtn"] for linear in report["linears"]]
    assert report["totals"] == {
        "num_linears": 14,
        "num_gptq": len(kept),
        "num_rtn": 14 - len(kept),
        "num_saturated": sum(linear["num_saturated"] for linear in report["linears"]),
        "mean_error_ratio_gptq_to_rtn": pytest.approx(sum(ratios) / 14),
    }
    assert report["warnings"] == []
    assert str(tmp_path) not in json.dumps(report)
    timing = read_json(result.output_dir / "quantize_timing.json")
    assert len(timing["layer_seconds"]) == 2
    assert timing["peak_memory_bytes"] > 1 << 20


def test_quantize_report_of_rtn(tmp_path):
    result = quantize(make_source(tmp_path / "model"), options=RTN)
    report = read_json(result.output_dir / "quantize_report.json")
    assert report["calibration"] is None
    assert report["options"] == {"method": "rtn", "formats": ["int8"]}
    assert report["totals"]["num_rtn"] == report["totals"]["num_linears"] == 14
    assert report["totals"]["mean_error_ratio_gptq_to_rtn"] is None
    assert all(
        linear["method"] == "rtn" and linear["error_gptq"] is None for linear in report["linears"]
    )


@pytest.mark.parametrize("dry_run", [False, True])
def test_quantize_gptq_too_few_tokens_for_the_width_is_a_warning(tmp_path, text, dry_run):
    source, recorder = make_source(tmp_path / "model"), Recorder()
    options = gptq_options(text, num_samples=20)
    result = quantize(source, options=options, dry_run=dry_run, progress=recorder)
    expected = (
        "576 fitted tokens are 3.6 for each of the 160 inputs of the widest linear, fewer than 4: "
        "the result follows this text's noise and may be worse than rounding on other text "
        "(--num-samples 24 of 32 tokens would do)"
    )
    assert result.warnings == (expected,) and recorder.warnings == [expected]
    enough = gptq_options(text, num_samples=24)
    assert quantize(source, options=enough, output=tmp_path / "o", dry_run=True).warnings == ()
    # The fast effort rounds the widest linear: 64 inputs remain, and 576 tokens are enough.
    fast = quantize(
        source, options=replace(options, effort="fast"), output=tmp_path / "o", dry_run=True
    )
    assert fast.warnings == () and fast.calibration["widest_in_features"] == 64


# ---- the time of each part ---------------------------------------------------------------------


@pytest.mark.parametrize("profile", [False, True])
def test_quantize_waits_for_the_device_at_every_phase_only_to_profile(tmp_path, text, profile):
    waited = []

    class CountedCompute(Compute):
        synchronize = property(lambda self: lambda: waited.append(1))

    source = make_source(tmp_path / "model")
    planned = plan_run(source, options=gptq_options(text, profile=profile))
    assert list(tmp_path.iterdir()) == [source]
    counted = replace(planned.plan, compute=CountedCompute(**vars(planned.plan.compute)))
    result = execute(replace(planned, plan=counted), SILENT, KeptLayers(), ALONE)
    # Otherwise once a layer, before the writers take its codes.
    assert len(waited) > 100 if profile else len(waited) == 2
    phases = read_json(result.output_dir / "quantize_timing.json")["phases"]
    assert {"read", "forward", "hessian", "factor", "solve", "compare"} <= phases.keys()
    report = read_json(result.output_dir / "quantize_report.json")
    assert "profile" not in report["options"]


# ---- failures ---------------------------------------------------------------------------------


def fails(error, source, options, **arguments):
    """Return the message of a run that must fail and leave no trace beside its input."""
    before = {path: path.is_dir() or path.read_bytes() for path in source.parent.rglob("*")}
    with pytest.raises(error) as caught:
        quantize(source, options=options, **arguments)
    after = {path: path.is_dir() or path.read_bytes() for path in source.parent.rglob("*")}
    assert after == before
    assert not torch.is_inference_mode_enabled()
    return str(caught.value)


REFUSED_OPTIONS = [
    ({"effort": "slow"}, "--effort is 'slow', expected fast or full."),
    *(
        ({"shrinkage": value}, f"--shrinkage is {value}, expected a number from 0 to 1.")
        for value in (-0.1, 1.1, float("nan"))
    ),
    *(
        ({"dampening_frac": value}, f"--dampening is {value}, expected a number above 0, up to 1.")
        for value in (0.0, 2.0)
    ),
    ({"device": "tpu"}, "--device is 'tpu', expected cpu, cuda or cuda:N."),
    (
        {"compute_dtype": "float16"},
        "The compute dtype is 'float16', expected auto, float32 or bfloat16.",
    ),
    (
        {"sources": ()},
        "--method gptq needs text to calibrate on: give --calibration NAME=PATH (c4, ceval, "
        "alpaca, chat, text or traces), or use --method rtn.",
    ),
    ({"method": "rtn"}, "--method rtn uses no calibration data. Leave --calibration out."),
    (
        {"num_samples": 1},
        "--num-samples must be at least 2: one row in ten, and at least one, is held out to "
        "compare gptq with rounding.",
    ),
    *(
        (
            {"formats": formats},
            f"The formats are {', '.join(formats) or 'none'}; expected one or more of vamc, int8, "
            "gptq, compressed-tensors, int-quantized, gguf, gptq-one-group, each once.",
        )
        for formats in ((), ("int4",), ("int8", "int8"))
    ),
]


def test_quantize_options_are_checked_before_text_is_read(tmp_path, text, monkeypatch):
    source = make_source(tmp_path / "model")
    monkeypatch.setattr(rows_module, "read_calibration_rows", lambda *_, **__: pytest.fail("read"))
    for changes, expected in REFUSED_OPTIONS:
        options = replace(gptq_options(text), **changes)
        assert fails(UsageError, source, options) == expected


def test_quantize_gptq_two_samples_are_enough(tmp_path, text):
    result = quantize(make_source(tmp_path / "model"), options=gptq_options(text, num_samples=2))
    assert result.calibration["num_samples"] == 2
    assert all(record.error_rtn > 0 for record in result.linears)


def test_quantize_missing_tokenizer(tmp_path, text):
    source = make_source(tmp_path / "model", with_tokenizer=False)
    message = fails(CheckpointError, source, gptq_options(text))
    assert message == (
        f"{source / 'tokenizer.json'} is missing. Download it from the model's repository into "
        "this directory."
    )
    assert quantize(source, options=RTN).totals()["num_linears"] == 14


@pytest.mark.parametrize(
    "overrides",
    [{"max_position_embeddings": 31}, {"use_sliding_window": True, "sliding_window": 31}],
)
def test_quantize_sequence_longer_than_the_context(tmp_path, text, overrides, monkeypatch):
    source = make_source(tmp_path / "model", config_overrides=overrides)
    monkeypatch.setattr(run_module, "output_directory", lambda *_, **__: pytest.fail("began"))
    message = fails(CheckpointError, source, gptq_options(text))
    assert message == (
        "Sequences of 32 tokens are longer than the model's context or sliding window of 31. Use a "
        "shorter --seq-len."
    )


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_quantize_non_finite_weight_names_tensor_and_row(tmp_path, text, method, bad):
    name = "model.layers.0.mlp.up_proj.weight"
    weight = torch.linspace(-1, 1, 160 * 64).view(160, 64).bfloat16()
    weight[137, 5] = bad  # a row that is not among the few that are read at the start
    source = make_source(tmp_path / "model", extra_tensors={name: weight})
    options = RTN if method == "rtn" else gptq_options(text)
    message = fails(QuantizationError, source, options)
    assert message == (
        f"{name} in {source}: row 137 holds NaN or infinity. Download the file "
        "model.safetensors again. If the new one holds the same, the training or the merge that "
        "wrote it went wrong: make the model again."
    )


def test_quantize_non_finite_activations_name_the_linear(tmp_path, text):
    name = "model.layers.0.input_layernorm.weight"
    norm = torch.ones(64, dtype=torch.bfloat16)
    norm[3] = 3e38  # finite, unlike what is computed with it
    source = make_source(tmp_path / "model", extra_tensors={name: norm})
    assert fails(QuantizationError, source, gptq_options(text)) == (
        "The inputs of model.layers.0.self_attn.q_proj: the activations hold NaN or infinity. "
        "Weights before it are damaged, or far too large: vacc-deploy verify reads all of them and "
        "names the damaged ones."
    )


def test_quantize_failure_waits_for_the_writer(tmp_path, monkeypatch):
    """No shard may be on its way while the partial directory is removed."""
    name = "model.layers.0.mlp.up_proj.weight"
    bad = torch.linspace(-1, 1, 160 * 64).view(160, 64).bfloat16()
    bad[1] = float("nan")
    source = make_source(tmp_path / "model", extra_tensors={name: bad})
    plain, is_slow, finished = shards.write_shard, threading.Event(), []

    def slow_write(path, tensors):
        is_slow.wait(0.3)
        finished.append(path.parent.is_dir())
        return plain(path, tensors)

    monkeypatch.setattr(shards, "write_shard", slow_write)
    fails(QuantizationError, source, RTN)
    assert finished == [True, True]  # the two copied shards were on their way
    assert not [t for t in threading.enumerate() if t.name.startswith("shard-writer")]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_quantize_dry_run_writes_nothing(tmp_path, text, method):
    source = make_source(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    options = RTN if method == "rtn" else gptq_options(text)
    result = quantize(source, options=options, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert result.dry_run and result.memory_bytes > 0
    assert result.to_text().startswith(
        f"Would quantize model to int8 in {tmp_path / 'model-int8-codes'}\n"
    )
    real = quantize(source, options=options)
    assert real.output_bytes == result.output_bytes


def test_quantize_dry_run_still_validates(tmp_path, text):
    source = make_source(tmp_path / "model")
    fails(CalibrationError, source, gptq_options(text, num_samples=3000), dry_run=True)
    fails(UsageError, source, QuantizeOptions("gptq"), dry_run=True)
    fails(OutputError, source, RTN, output=source / "inside", dry_run=True)


@pytest.mark.parametrize("place", [".", "../model", "sub/.."])
def test_quantize_default_output_stands_beside_the_directory(tmp_path, monkeypatch, place):
    source = make_source(tmp_path / "model")
    (source / "sub").mkdir()
    monkeypatch.chdir(source)
    result = quantize(Path(place), options=RTN)
    assert result.output_dir.resolve() == tmp_path / "model-int8-codes"
    assert result.model == "model"


def test_quantize_default_output_of_a_link_has_the_links_name(tmp_path):
    make_source(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    assert quantize(tmp_path / "link", options=RTN).output_dir == tmp_path / "link-int8-codes"


@pytest.mark.parametrize("place", ["whole", "through a link"])
def test_quantize_default_output_of_a_snapshot_is_not_in_the_cache(tmp_path, monkeypatch, place):
    """It lies in the working directory and has the repository's name."""
    folder = tmp_path / "hub" / "models--some--Thing"
    snapshot = make_source(folder / "snapshots" / ("a" * 40))
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    given = tmp_path / "link/snapshots" / snapshot.name if place == "through a link" else snapshot
    result = quantize(given, options=RTN, dry_run=True)
    assert (result.output_dir, result.model) == (Path("Thing-int8-codes"), "Thing")


# ---- the files that loaders read --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_int8_directory_is_refused_by_stock_loaders(tmp_path, kind):
    output = quantize(make_source(tmp_path / "model", kind), options=RTN).output_dir
    with pytest.raises((ValueError, KeyError, AttributeError), match="quant"):
        AutoModelForCausalLM.from_pretrained(output, trust_remote_code=False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_int8_directory_loads_with_remote_code_and_equals_the_decoder(tmp_path, text, tied, method):
    options = RTN if method == "rtn" else gptq_options(text)
    source = make_source(tmp_path / f"model_{tied}_{method}", tied=tied)
    output = quantize(source, options=options).output_dir
    model = AutoModelForCausalLM.from_pretrained(
        output, trust_remote_code=True, dtype=torch.float32
    ).eval()
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits, expected = model(tokens).logits, decoder_logits(output, tokens)
    assert logits.shape == (2, 24, 272)  # every position, whatever insert_slice the compiler gets
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_int8_guard_equals_the_constant_of_the_shipped_file():
    path = SOURCE_DIR / "configuration_qwen2_vacc.py"
    spec = importlib.util.spec_from_file_location("shipped_configuration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.INT8_GUARD == INT8_GUARD
    assert "quant_method" not in INT8_GUARD


def test_int8_config_of_qwen2(tmp_path):
    output = quantize(make_source(tmp_path / "model"), options=RTN).output_dir
    config, vacc = (read_json(output / name) for name in ("config.json", "config_vacc.json"))
    assert config.pop("quantization_config") == INT8_GUARD
    assert (config.pop("insert_slice"), vacc.pop("insert_slice")) == (False, True)
    assert config == vacc
    assert config["quantization_bit"] == 8 and config["sliding_window"] is None


def test_int8_config_of_llama_drops_a_strangers_auto_map(tmp_path):
    overrides = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    source = make_source(tmp_path / "model", "llama", config_overrides=overrides)
    output = quantize(source, options=RTN).output_dir
    raw = read_json(source / "config.json")
    raw.pop("auto_map")
    expected = {**raw, "quantization_bit": 8, "quantization_config": INT8_GUARD}
    assert read_json(output / "config.json") == expected
    assert not (output / "config_vacc.json").exists()


def test_int8_vacc_config_keeps_harmless_edits_of_the_prepared_directory(tmp_path):
    make_source(tmp_path / "model")
    prepared = prepare(weights=tmp_path / "model", output=tmp_path / "prepared")
    path = prepared.output_dir / "config_vacc.json"
    edited = {**read_json(path), "my_key": [1, "ü"]}
    path.write_text(json.dumps(edited), "utf-8")
    output = quantize(prepared.output_dir, options=RTN).output_dir
    assert read_json(output / "config_vacc.json") == {**edited, "quantization_bit": 8}


def test_quantize_carries_no_stranger_s_files(tmp_path):
    source = make_source(tmp_path / "model")
    for name in ("modeling_evil.py", "pytorch_model.bin", "modeling_qwen2_vacc.py", "notes.txt"):
        (source / name).write_text("raise SystemExit")
    (source / "custom_generate").mkdir()
    output = quantize(source, options=RTN).output_dir
    assert not {"modeling_evil.py", "pytorch_model.bin", "notes.txt", "custom_generate"} & {
        path.name for path in output.iterdir()
    }
    shipped = (SOURCE_DIR / "modeling_qwen2_vacc.py").read_bytes()
    assert (output / "modeling_qwen2_vacc.py").read_bytes() == shipped


def test_quantize_files_that_the_source_links_to_are_inputs_too(tmp_path):
    # A hub's cache: the one place outside of its directory to which a link is followed.
    source = make_source(tmp_path / "models--x--y/snapshots/0")
    output = tmp_path / "models--x--y" / "blobs"
    quantize(make_source(tmp_path / "real"), options=RTN, output=output)
    (source / "model.safetensors").rename(output / "model.safetensors")
    (source / "model.safetensors").symlink_to(output / "model.safetensors")
    text = fails(OutputError, source, RTN, output=output, overwrite=True)
    assert text.startswith(f"The output {output} is the input {output / 'model.safetensors'}")


@pytest.mark.parametrize(("layout", "told"), [("vamc", "said"), ("int8", "warnings")])
def test_a_llama_learns_at_the_start_which_ways_lead_to_the_card(tmp_path, layout, told):
    source, recorder = make_source(tmp_path / "model", "llama"), Recorder()
    options = QuantizeOptions("rtn", formats=(layout,))
    quantize(source, options=options, dry_run=True, progress=recorder)
    (text,) = [t for t in getattr(recorder, told) if "Llama" in t]
    assert "vamc cannot read the int8 codes" in text


def test_a_qwen_needs_no_word_on_ways_to_the_card(tmp_path):
    source, recorder = make_source(tmp_path / "model"), Recorder()
    quantize(source, options=QuantizeOptions("rtn"), dry_run=True, progress=recorder)
    assert not recorder.said and not recorder.warnings


def test_a_quantized_source_names_the_float_one(tmp_path):
    source = make_source(tmp_path / "model")
    deployed = quantize(source, options=QuantizeOptions("rtn")).output_dir
    with pytest.raises(CheckpointError) as caught:
        quantize(deployed, options=QuantizeOptions("rtn"))
    assert str(caught.value).endswith(f"Give the float directory it was made from: {source}.")
    (deployed / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match="run the vacc-deploy quantize that wrote"):
        Checkpoint.open(deployed)
