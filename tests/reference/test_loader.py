"""Loading a directory as a transformers model, and what of it is never run."""

import importlib.util
import os
import py_compile
from types import SimpleNamespace

import pytest
import torch
import transformers
from checkpoint_builders import LLAMA3_ROPE, read_tensors, write_checkpoint
from reference_logits import decoder_logits, edit_json, make_directory, make_tokens
from texts import read_json
from tokenizer_builders import BOS_ID

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.generate import continue_prompts
from vacc_deploy.reference.loader import activation_dtype, check_source_files, load_model
from vacc_deploy.text.tokenizer import Tokenizer

EVIL = "import pathlib\npathlib.Path({marker!r}).write_text('ran')\n"


@pytest.mark.parametrize("form", ["float", "prepared", "int8", "prepared-int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_load_model_equals_the_decoder(tmp_path, model_type, form, tied):
    directory = make_directory(tmp_path, model_type, form, tied=tied)
    model, tokens = load_model(directory), make_tokens()
    assert not model.training
    with torch.inference_mode():
        logits, expected = model(tokens).logits, decoder_logits(directory, tokens)
    if logits.shape[1] == 1:  # the compiler's slice: prefill gives the last position only
        expected = expected[:, -1:]
    assert logits.shape == expected.shape
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_load_model_llama_biases_and_rope(tmp_path, model_type):
    overrides = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    if model_type == "llama":
        overrides |= {"attention_bias": True, "mlp_bias": True}
    directory = make_directory(tmp_path, model_type, "int8", config_overrides=overrides)
    tokens = make_tokens()
    with torch.inference_mode():
        logits = load_model(directory)(tokens).logits
    expected = decoder_logits(directory, tokens)[:, -logits.shape[1] :]
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_load_model_bfloat16_keeps_codes_and_scales_exact(tmp_path, model_type):
    directory = make_directory(tmp_path, model_type, "int8")
    model = load_model(directory, dtype=torch.bfloat16)
    state, stored = model.state_dict(), read_tensors(directory)
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8 or name.endswith("weight_scale"):
            assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype
    with torch.inference_mode():
        logits = model(make_tokens()).logits
    assert logits.dtype == (torch.float32 if model_type == "qwen2" else torch.bfloat16)
    expected = decoder_logits(directory, make_tokens())[:, -logits.shape[1] :]
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize("form", ["float", "int8"])
@pytest.mark.parametrize("version", ["4.37.2", "4.42.4"])
def test_load_model_llama3_on_old_transformers_names_the_version(
    tmp_path, monkeypatch, form, version
):
    scaling = {"rope_scaling": LLAMA3_ROPE}
    directory = make_directory(tmp_path, "llama", form, config_overrides=scaling)
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(CheckpointError) as err:
        load_model(directory)
    assert str(err.value) == (
        f"{directory}: config.json has rope_scaling of type llama3, which transformers 4.43 and "
        f"newer read; transformers {version} is installed. Run: pip install 'transformers>=4.43'"
    )


@pytest.mark.parametrize("form", ["float", "int8"])
def test_load_model_llama_without_llama3_scaling_needs_no_version(tmp_path, monkeypatch, form):
    overrides = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    directory = make_directory(tmp_path, "llama", form, config_overrides=overrides)
    monkeypatch.setattr("transformers.__version__", "4.42.4")
    assert torch.isfinite(load_model(directory)(make_tokens()).logits).all()


# ---- code from a directory --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize("name", SOURCE_FILES)
def test_load_model_changed_source_file_is_refused_and_not_run(tmp_path, form, name):
    directory, marker = make_directory(tmp_path, form=form), tmp_path / "marker"
    path = directory / name
    path.write_text(path.read_text("utf-8") + EVIL.format(marker=str(marker)), "utf-8")
    with pytest.raises(CheckpointError, match=name):
        load_model(directory)
    assert not marker.exists()


def test_a_tensor_that_transformers_leaves_without_values_is_named(tmp_path, monkeypatch):
    build = transformers.AutoModelForCausalLM.from_config

    def build_with_more(config, **options):
        model = build(config, **options)
        model.register_buffer("more", torch.empty(1, device="meta"), persistent=False)
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", build_with_more)
    message = f"the installed transformers {transformers.__version__} leaves more without values"
    with pytest.raises(CheckpointError, match=message):
        load_model(write_checkpoint(tmp_path / "m"))


def test_check_source_files_names_all_that_are_wrong(tmp_path):
    directory = make_directory(tmp_path)
    check_source_files(directory)
    (directory / "modeling_qwen2_vacc.py").unlink()
    (directory / "quantization_vacc.py").write_text("")
    with pytest.raises(CheckpointError) as err:
        check_source_files(directory)
    assert str(err.value) == (
        f"{directory}: each of these files is missing or differs from that of this version of "
        "vacc-deploy: modeling_qwen2_vacc.py, quantization_vacc.py. Loading would run it as code, "
        "so it is refused. Make the directory again with prepare or quantize of this version."
    )


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize("key", ["AutoConfig", "AutoModelForCausalLM"])
@pytest.mark.parametrize("config_name", ["config.json", "config_vacc.json"])
def test_load_model_auto_map_runs_no_other_file(tmp_path, form, key, config_name):
    directory, marker = make_directory(tmp_path, form=form), tmp_path / "marker"
    text = (directory / "modeling_qwen2_vacc.py").read_text("utf-8")
    if key == "AutoConfig":
        text = (directory / "configuration_qwen2_vacc.py").read_text("utf-8")
    (directory / "evil.py").write_text(text + EVIL.format(marker=str(marker)), "utf-8")
    path = directory / config_name
    class_name = "Qwen2Config" if key == "AutoConfig" else "Qwen2ForCausalLM"
    auto_map = read_json(path).get("auto_map", {})
    edit_json(path, auto_map={**auto_map, key: f"evil.{class_name}"})
    if config_name == "config_vacc.json":
        with pytest.raises(CheckpointError, match=rf"{key}.*evil.*expected"):
            load_model(directory)
    else:
        load_model(directory)
    assert not marker.exists()


@pytest.mark.parametrize("form", ["float", "prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_load_model_kernel_named_by_the_config_is_never_used(tmp_path, model_type, form, key):
    directory = make_directory(tmp_path, model_type, form)
    edit_json(directory / "config.json", **{key: "evil/kernel"})
    model = load_model(directory)
    assert model.config._attn_implementation == "eager"
    if (directory / "config_vacc.json").is_file() and key.startswith("_"):
        edit_json(directory / "config_vacc.json", **{key: "evil/kernel"})
        with pytest.raises(CheckpointError, match="_attn_implementation: got 'evil/kernel'"):
            load_model(directory)


@pytest.mark.parametrize("form", ["prepared", "int8"])
def test_load_model_config_vacc_of_another_model_is_refused(tmp_path, form):
    directory = make_directory(tmp_path, form=form)
    edit_json(directory / "config_vacc.json", rope_theta=77)
    with pytest.raises(CheckpointError, match="rope_theta: got 77.0, config.json has 10000.0"):
        load_model(directory)


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_load_model_needs_no_home(tmp_path, monkeypatch, model_type, form):
    """transformers copies remote code into this folder; a container's home may be read-only."""
    directory = make_directory(tmp_path, model_type, form)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", "/dev/null/x")
    model = load_model(directory)
    before = {path.name for path in directory.iterdir()}
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in directory.iterdir()} == before  # no __pycache__ either
    assert read_tensors(tmp_path / "saved").keys() == read_tensors(directory).keys()


def test_load_model_stale_bytecode_beside_the_source_files_is_not_run(tmp_path):
    """Python trusts a .pyc by the time and the size of its source, not by the content."""
    directory, marker = make_directory(tmp_path), tmp_path / "marker"
    path = directory / "configuration_qwen2_vacc.py"
    content, times = path.read_text("utf-8"), path.stat()
    path.write_text(EVIL.format(marker=str(marker)).ljust(times.st_size), "utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    py_compile.compile(str(path), cfile=importlib.util.cache_from_source(str(path)))
    path.write_text(content, "utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    load_model(directory)
    assert not marker.exists()


# Values that transformers' classes act on: each gave a traceback, or took gigabytes.
STRANGE_VALUES = {
    "num_labels": 30_000_000,
    "id2label": {"a": "b"},
    "return_dict": False,
    "is_encoder_decoder": True,
    "base_model_pp_plan": 3,
    "experts_implementation": "x",
    "attention_dropout": "x",
    "initializer_range": 7,
    "torchscript": True,
    "output_attentions": True,
    "use_cache": False,
    "pruned_heads": {"0": [0]},
    "chunk_size_feed_forward": 3,
    "custom_pipelines": {"a": "b"},
    "_attn_implementation_internal": "kernels/evil",
    "problem_type": "x",
    "architectures": ["Qwen2ForSequenceClassification"],
    "pad_token_id": 1_000_000_000,
    "bos_token_id": "a",
    "eos_token_id": [[1], 10**30],
    "temperature": "x",
    "name_or_path": "/etc",
    "gradient_checkpointing": True,
}


@pytest.mark.parametrize("form", ["float", "prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_load_model_no_unknown_key_reaches_transformers(tmp_path, model_type, form):
    directory = make_directory(tmp_path, model_type, form)
    with torch.inference_mode():
        expected = load_model(directory)(make_tokens()).logits
        names = [n for n in ("config.json", "config_vacc.json") if (directory / n).is_file()]
        # "a" is a token: config.json then has another BOS than config_vacc.json, which is refused.
        strange = {k: v for k, v in STRANGE_VALUES.items() if len(names) == 1 or v != "a"}
        for name in names:
            edit_json(directory / name, **strange)
        model = load_model(directory)
        assert torch.equal(model(make_tokens()).logits, expected)
    for key, value in strange.items():
        assert getattr(model.config, key, None) != value
    assert continue_prompts(model, Tokenizer.from_dir(directory), [[BOS_ID, 3]], max_new_tokens=2)


@pytest.mark.parametrize("form", ["float", "prepared", "int8"])
def test_load_model_transformers_reads_no_file_of_the_directory(tmp_path, monkeypatch, form):
    directory = make_directory(tmp_path, form=form)
    (directory / "generation_config.json").write_text('{"cache_implementation": "x"}', "utf-8")
    for owner in (transformers.PretrainedConfig, transformers.GenerationConfig):
        monkeypatch.setattr(owner, "from_pretrained", None)
        monkeypatch.setattr(owner, "get_config_dict", None, raising=False)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    assert load_model(directory).generation_config.cache_implementation is None


@pytest.mark.parametrize("form", ["float", "prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_load_model_custom_generate_is_not_run(tmp_path, model_type, form):
    """transformers runs ``custom_generate/generate.py`` of a directory that it trusts."""
    directory, marker = make_directory(tmp_path, model_type, form), tmp_path / "marker"
    (directory / "custom_generate").mkdir()
    code = EVIL.format(marker=str(marker)) + "\ndef generate(model, **kwargs):\n    return None\n"
    (directory / "custom_generate" / "generate.py").write_text(code, "utf-8")
    model = load_model(directory)
    assert not marker.exists()
    tokenizer = Tokenizer.from_dir(directory)
    assert continue_prompts(model, tokenizer, [[BOS_ID, 3, 4]], max_new_tokens=2)
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_load_model_strangers_auto_map_of_a_float_directory_is_not_run(tmp_path, model_type):
    marker = tmp_path / "marker"
    overrides = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    directory = make_directory(tmp_path, model_type, "float", config_overrides=overrides)
    (directory / "evil.py").write_text(EVIL.format(marker=str(marker)), "utf-8")
    load_model(directory)
    assert not marker.exists()


def test_load_model_never_reads_pickled_weights(tmp_path, monkeypatch):
    """A pickle lies where transformers looks for weights, and safetensors under another name."""
    directory = write_checkpoint(tmp_path / "model", shard_names=["odd.safetensors"])
    torch.save({}, directory / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", None)
    with torch.inference_mode():
        logits = load_model(directory)(make_tokens()).logits
        assert torch.allclose(logits, decoder_logits(directory, make_tokens()), atol=1e-5)


def test_activation_dtype_depends_on_the_size():
    for billions, expected in ((1.5, torch.float32), (3.0, torch.float32), (7.6, torch.bfloat16)):
        config = SimpleNamespace(num_parameters=lambda billions=billions: int(billions * 1e9))
        assert activation_dtype(SimpleNamespace(config=config)) == expected


def test_load_model_generation_config_that_is_no_object_is_named(tmp_path):
    directory = make_directory(tmp_path, "llama", "float")
    (directory / "generation_config.json").write_text("[]", "utf-8")
    with pytest.raises(CheckpointError, match="generation_config.json holds list, expected a JSON"):
        load_model(directory)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_bfloat16_keeps_the_int8_values_of_a_vamc_directory(tmp_path, model_type):
    source = write_checkpoint(tmp_path / "model", model_type=model_type)
    both = quantize(source, options=QuantizeOptions("rtn", formats=("vamc", "int8"))).output_dir
    model = load_model(both / "vamc", dtype=torch.bfloat16)
    stored = Checkpoint.open(both / "int8")
    for name in stored.config.linear_names():
        assert torch.equal(model.get_submodule(name).weight, stored.read(f"{name}.weight"))
    assert load_model(both / "vamc", dtype=torch.float32).dtype == torch.float32
