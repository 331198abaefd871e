"""Loading a directory as a transformers model, what it refuses to run, and greedy answers."""

import importlib.util
import json
import os
import py_compile

import pytest
import torch
import transformers.dynamic_module_utils
from checkpoint_builders import read_tensors, write_checkpoint
from click.testing import CliRunner
from reference_logits import decoder_logits
from tokenizer_builders import ASSISTANT_ID, BOS_ID, EOS_ID, USER_ID, byte_ids

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference import loader as runtime
from vacc_deploy.reference.generate import complete, eos_ids, generate
from vacc_deploy.reference.loader import check_source_files, load_model
from vacc_deploy.text.tokenizer import Tokenizer

EVIL = "import pathlib\npathlib.Path({marker!r}).write_text('ran')\n"


def make_directory(tmp_path, model_type="qwen2", form="prepared", **arguments):
    source = write_checkpoint(tmp_path / "model", model_type=model_type, **arguments)
    if form == "float":
        return source
    if form == "int8":
        return quantize(source, options=QuantizeOptions("rtn")).output_dir
    prepared = prepare(weights=source, output=tmp_path / "prepared", link_mode="copy").output_dir
    if form == "prepared":
        return prepared
    return quantize(prepared, options=QuantizeOptions("rtn")).output_dir


def make_tokens(rows=2, seq=21):
    return torch.randint(0, 256, (rows, seq), generator=torch.Generator().manual_seed(4))


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
    import transformers

    directory = make_directory(tmp_path, "llama", form)
    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(CheckpointError) as err:
        load_model(directory)
    assert str(err.value) == (
        f"{directory}: config.json has rope_scaling of type llama3, which transformers 4.43 and "
        f"newer read; transformers {version} is installed. Run: pip install 'transformers>=4.43'"
    )


@pytest.mark.parametrize("form", ["float", "int8"])
def test_load_model_llama_without_llama3_scaling_needs_no_version(tmp_path, monkeypatch, form):
    import transformers

    overrides = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    directory = make_directory(tmp_path, "llama", form, config_overrides=overrides)
    monkeypatch.setattr(transformers, "__version__", "4.42.4")
    assert torch.isfinite(load_model(directory)(make_tokens()).logits).all()


# ---- code from a directory --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize(
    "name", ["modeling_qwen2_vacc.py", "configuration_qwen2_vacc.py", "quantization_vacc.py"]
)
def test_load_model_changed_source_file_is_refused_and_not_run(tmp_path, form, name):
    directory, marker = make_directory(tmp_path, form=form), tmp_path / "marker"
    path = directory / name
    path.write_text(path.read_text("utf-8") + EVIL.format(marker=str(marker)), "utf-8")
    with pytest.raises(CheckpointError) as err:
        load_model(directory)
    assert str(err.value) == (
        f"{directory}: {name} missing or not the file this version of vacc-deploy carries. Loading "
        "would run it as code, so it is refused. Prepare the directory again with this version."
    )
    assert not marker.exists()


def test_check_source_files_names_all_that_are_wrong(tmp_path):
    directory = make_directory(tmp_path)
    check_source_files(directory)
    (directory / "modeling_qwen2_vacc.py").unlink()
    (directory / "quantization_vacc.py").write_text("")
    with pytest.raises(CheckpointError) as err:
        check_source_files(directory)
    assert "modeling_qwen2_vacc.py" in str(err.value) and "quantization_vacc.py" in str(err.value)
    assert "configuration_qwen2_vacc.py" not in str(err.value)


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
    config = json.loads(path.read_text("utf-8"))
    class_name = "Qwen2Config" if key == "AutoConfig" else "Qwen2ForCausalLM"
    config.setdefault("auto_map", {})[key] = f"evil.{class_name}"
    path.write_text(json.dumps(config), "utf-8")
    if config_name == "config_vacc.json":
        with pytest.raises(CheckpointError, match=rf"{key}.*evil.*expected"):
            load_model(directory)
    else:
        load_model(directory)
    assert not marker.exists()


def edit_json(path, **changes):
    values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**values, **changes}), "utf-8")


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
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", "/dev/null/x")
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


@pytest.mark.parametrize("form", ["float", "prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("changes", [{"id2label": 5}, {"id2label": {"a": "b"}}])
def test_load_model_value_that_the_configuration_class_refuses(tmp_path, model_type, form, changes):
    directory = make_directory(tmp_path, model_type, form)
    for name in ("config.json", "config_vacc.json"):
        if (directory / name).is_file():
            edit_json(directory / name, **changes)
    with pytest.raises(CheckpointError, match=r"json is refused by its configuration class: "):
        load_model(directory)


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
    assert complete(model, tokenizer, [[BOS_ID, 3, 4]], max_new_tokens=2)
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_load_model_strangers_auto_map_of_a_float_directory_is_not_run(tmp_path, model_type):
    marker = tmp_path / "marker"
    overrides = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    directory = make_directory(tmp_path, model_type, "float", config_overrides=overrides)
    (directory / "evil.py").write_text(EVIL.format(marker=str(marker)), "utf-8")
    load_model(directory)
    assert not marker.exists()


def test_load_model_never_reads_pickled_weights(tmp_path):
    """A directory without an index, whose only other weights are a pickle, is not a model."""
    directory = write_checkpoint(tmp_path / "model", shard_names=["odd.safetensors"])
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises((OSError, CheckpointError), match="model.safetensors"):
        load_model(directory)


# ---- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_complete_is_greedy(tmp_path, model_type, form):
    directory = make_directory(tmp_path, model_type, form)
    prompt = [BOS_ID, *byte_ids("hello there")]
    (answer,) = complete(
        load_model(directory), Tokenizer.from_dir(directory), [prompt], max_new_tokens=8
    )
    assert 1 <= len(answer) <= 8
    ids = list(prompt)
    for token in answer:
        assert decoder_logits(directory, torch.tensor([ids]))[0, -1].argmax() == token
        ids.append(token)


def test_complete_is_greedy_whatever_generation_config_says(tmp_path):
    directory = make_directory(tmp_path, "llama", "float")
    tokenizer, prompt = Tokenizer.from_dir(directory), [BOS_ID, *byte_ids("hello there")]
    expected = complete(load_model(directory), tokenizer, [prompt], max_new_tokens=8)
    edit_json(
        directory / "generation_config.json",
        repetition_penalty=5.0,
        num_beams=3,
        suppress_tokens=expected[0][:1],
        no_repeat_ngram_size=1,
        forced_eos_token_id=3,
        return_dict_in_generate=True,
        num_return_sequences=2,
        max_length=3,
        do_sample=True,
    )
    model = load_model(directory)
    for _ in range(2):
        assert complete(model, tokenizer, [prompt], max_new_tokens=8) == expected


def test_complete_is_greedy_whatever_generation_parameters_the_config_holds(tmp_path):
    directory = make_directory(tmp_path, "llama", "float")
    tokenizer, prompt = Tokenizer.from_dir(directory), [BOS_ID, *byte_ids("hello there")]
    expected = complete(load_model(directory), tokenizer, [prompt], max_new_tokens=8)
    (directory / "generation_config.json").unlink()
    edit_json(directory / "config.json", repetition_penalty=5.0, num_beams=3)
    assert complete(load_model(directory), tokenizer, [prompt], max_new_tokens=8) == expected


@pytest.mark.parametrize("form", ["prepared", "int8"])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_complete_batch_equals_single_runs(tmp_path, model_type, form):
    directory = make_directory(tmp_path, model_type, form)
    model, tokenizer = load_model(directory), Tokenizer.from_dir(directory)
    prompts = [[BOS_ID, *byte_ids("a" * n + "bcd")] for n in (1, 9, 30)]
    together = complete(model, tokenizer, prompts, max_new_tokens=10)
    single = [complete(model, tokenizer, [p], max_new_tokens=10)[0] for p in prompts]
    assert together == single
    assert any(len(set(answer)) > 1 for answer in together)


class FakeModel:
    """Answers with fixed rows, as ``generate`` pads them."""

    def __init__(self, rows, eos_token_id):
        self.rows = torch.tensor(rows)
        self.generation_config = type("Config", (), {"eos_token_id": eos_token_id})()

    def generate(self, ids, *, attention_mask, generation_config):
        ends, pad = generation_config.eos_token_id, generation_config.pad_token_id
        self.seen = (ids.tolist(), attention_mask.tolist(), ends, pad)
        return torch.cat((ids, self.rows), dim=1)


class FakeTokenizer:
    def __init__(self, eos_id):
        self.eos_id = eos_id


def test_complete_stops_each_row_at_its_first_end_and_pads_left():
    model = FakeModel([[5, 9, 9], [7, 8, 5], [5, 6, 7]], [9, 6])
    answers = complete(model, FakeTokenizer(9), [[1], [1, 2, 3], [4, 4]], max_new_tokens=3)
    assert answers == [[5, 9], [7, 8, 5], [5, 6]]
    ids, mask, ends, pad = model.seen
    assert ids == [[6, 6, 1], [1, 2, 3], [6, 4, 4]]
    assert mask == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert (ends, pad) == ([6, 9], 6)


def test_complete_without_any_end_token():
    model = FakeModel([[5, 0, 9]], None)
    assert complete(model, FakeTokenizer(None), [[1]], max_new_tokens=3) == [[5, 0, 9]]
    assert model.seen[2:] == (None, 0)


@pytest.mark.parametrize(
    ("stated", "of_tokenizer", "expected"),
    [(7, 7, [7]), ([3, 1], 2, [1, 2, 3]), (None, 4, [4]), (0, None, [0]), (None, None, [])],
)
def test_eos_ids_joins_both_sources(stated, of_tokenizer, expected):
    assert eos_ids(FakeModel([[0]], stated), FakeTokenizer(of_tokenizer)) == expected


def make_ending(tmp_path, num_tokens):
    """A model that always answers "!" (id 0), or ends at once when ``num_tokens`` is 1."""
    head = torch.zeros(272, 64)
    token = EOS_ID if num_tokens == 1 else 0
    table = torch.ones(272, 64)
    head[token] = 1.0
    extra = {"lm_head.weight": head, "model.embed_tokens.weight": table}
    for layer in range(2):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            shape = (64, 64) if name == "self_attn.o_proj" else (64, 160)
            extra[f"model.layers.{layer}.{name}.weight"] = torch.zeros(shape)
    extra["model.norm.weight"] = torch.ones(64)
    return make_directory(
        tmp_path, extra_tensors={n: t.bfloat16() for n, t in extra.items()}, form="prepared"
    )


def test_generate_stopped_by_the_limit(tmp_path):
    directory = make_ending(tmp_path, 5)
    answer = generate(directory, prompt="hi there", max_new_tokens=5)
    assert (answer.text, answer.num_new_tokens, answer.finished) == ("!!!!!", 5, False)
    prompt = [BOS_ID, USER_ID, *byte_ids("hi there"), ASSISTANT_ID]
    assert answer.num_prompt_tokens == len(prompt)
    assert answer.to_text().startswith("!!!!!\n\n[5 tokens in ")
    assert answer.to_text().endswith(" tokens/s, stopped at --max-new-tokens]")


def test_generate_ended_by_the_model(tmp_path):
    answer = generate(make_ending(tmp_path, 1), prompt="hi", max_new_tokens=5)
    assert (answer.text, answer.num_new_tokens, answer.finished) == ("", 1, True)
    assert answer.to_text().endswith(" tokens/s]")


def test_generate_command_text_and_json(tmp_path):
    directory = make_ending(tmp_path, 5)
    arguments = ["generate", str(directory), "--prompt", "hi", "--max-new-tokens", "3"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "!!!\n\n[3 tokens in " in result.output
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    seconds = values.pop("seconds")
    assert seconds >= 0 and values == {
        "prompt": "hi",
        "text": "!!!",
        "num_prompt_tokens": 5,
        "num_new_tokens": 3,
        "finished": False,
    }


def test_generate_command_needs_a_prompt_and_a_template(tmp_path):
    directory = make_ending(tmp_path, 5)
    result = CliRunner().invoke(cli, ["generate", str(directory)])
    assert result.exit_code == 2 and "Missing option '--prompt'" in result.output
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["chat_template"]
    path.write_text(json.dumps(config), "utf-8")
    result = CliRunner().invoke(cli, ["generate", str(directory), "--prompt", "hi"])
    assert result.exit_code == 1
    assert f"{directory} has no chat template" in result.output


def test_activation_dtype_depends_on_the_size(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(make_directory(tmp_path, form="float"))
    assert runtime.activation_dtype(checkpoint) == torch.float32
    monkeypatch.setattr(type(checkpoint.config), "num_parameters", lambda self: 7_600_000_000)
    assert runtime.activation_dtype(checkpoint) == torch.bfloat16


def test_generate_beyond_the_context_is_a_usage_error(tmp_path):
    directory = write_checkpoint(tmp_path / "m", config_overrides={"max_position_embeddings": 64})
    with pytest.raises(UsageError, match="more than the model's context of 64"):
        generate(directory, prompt="12+30=", max_new_tokens=64)
