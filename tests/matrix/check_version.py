"""Check the source files against the torch and the transformers of this environment.

    python check_version.py DIRECTORIES [--json FILE]

DIRECTORIES is what ``directories.py`` wrote. The reference is the library's own Qwen2, Qwen3 or
Llama of the same version, in float32 with eager attention; ``check_architectures.py`` says where it
is another. Python 3.8 syntax: this file runs wherever the source files do.
"""

import argparse
import importlib
import inspect
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

from matrix_support import (
    CHECKS,
    DTYPES,
    FOLDER,
    GREEDY,
    ROOT,
    VERSION,
    KnownLimit,
    NotApplicable,
    can_multiply,
    check,
    dtype_option,
    left_padded,
    load,
    load_stock,
    make_ids,
    relative_error,
    require_close,
    require_exact_state,
    require_stored_tensors,
    require_tokens,
    save_and_reload,
    scratch,
    split_past,
    stored,
)

# isort: split
# matrix_support has set the environment that transformers reads when it is imported.
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

# ---- the checks -------------------------------------------------------------------------------


@check("load")
def check_load(root):
    """Every weight as stored, tied or not, and no buffer that a loader could leave unfilled;
    `AutoModel` and `AutoModelForCausalLM` give our classes.
    """
    for name in ("qwen2", "tied"):
        folder = root / (name + "-prepared")
        model = load(folder)
        require_exact_state(model, folder)
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        assert tied == (name == "tied"), "tied weights"
    assert type(load(folder, auto=AutoModel)).__name__ == "Qwen2Model"


@check("forward")
def check_forward(root):
    """Logits equal stock to 1e-5 with and without a cache (tuples and `DynamicCache`), with left
    padding, and the loss.
    """
    ids, (padded, mask) = make_ids(), left_padded()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for name in ("qwen2", "tied"):
        stock = load_stock(root / (name + "-source"))
        own = load(root / (name + "-prepared"), fields={"insert_slice": False})
        expected = stock(ids).logits
        require_close("without cache", own(ids, use_cache=False).logits, expected)
        first, last = split_past(own, ids)
        require_close("prefill", first.logits, expected[:, :20])
        require_close("decode", last.logits, expected[:, 20:])
        cache = DynamicCache()
        first, last = split_past(own, ids, past_key_values=cache)
        assert last.past_key_values is cache, "the cache is not the one given"
        require_close("decode with DynamicCache", last.logits, expected[:, 20:])
        inputs = {"attention_mask": mask, "position_ids": positions}
        actual, expected = own(padded, **inputs).logits, stock(padded, **inputs).logits
        require_close("left padding", actual[mask.bool()], expected[mask.bool()])
        loss, expected = own(ids, labels=ids).loss, stock(ids, labels=ids).loss
        require_close("loss", loss, expected)


@check("insert_slice")
def check_insert_slice(root):
    """The same with `insert_slice` on: the last position only; `iter_num` 1 gives all of them."""
    ids = make_ids()
    expected = load_stock(root / "qwen2-source")(ids).logits
    own = load(root / "qwen2-prepared")
    assert own.config.insert_slice is True
    require_close("without cache", own(ids, use_cache=False).logits, expected[:, -1:])
    first, last = split_past(own, ids)
    require_close("prefill", first.logits, expected[:, 19:20])
    require_close("decode", last.logits, expected[:, -1:])
    try:
        own(ids, labels=ids)
        raise AssertionError("labels are accepted")
    except ValueError:
        pass
    decode = load(root / "qwen2-prepared", fields={"iter_num": 1})
    require_close("iter_num 1", decode(ids).logits, expected)


@check("tuple past")
def check_tuple_past(root):
    """Decode steps fed with plain tuples of keys and values."""
    ids = make_ids()
    expected = load_stock(root / "qwen2-source")(ids).logits
    own = load(root / "qwen2-prepared", fields={"insert_slice": False})
    past = own(ids[:, :20], use_cache=True).past_key_values
    assert isinstance(past, tuple) and isinstance(past[0], tuple), type(past).__name__
    assert tuple(past[1][0].shape) == (2, 2, 20, 16), tuple(past[1][0].shape)
    for step in range(20, 24):
        output = own(ids[:, step : step + 1], past_key_values=past, use_cache=True)
        require_close(f"step {step}", output.logits, expected[:, step : step + 1])
        past = output.past_key_values
        assert isinstance(past, tuple), type(past).__name__


@check("generate")
def check_generate(root):
    """The same tokens as stock: greedy, batched with left padding, without a cache, two beams;
    `insert_slice` off and on.
    """
    ids, (padded, mask) = make_ids(), left_padded()
    for name in ("qwen2", "tied"):
        stock = load_stock(root / (name + "-source"))
        for fields in ({"insert_slice": False}, {"insert_slice": True}):
            own = load(root / (name + "-prepared"), fields=fields)
            single, batch = (ids[:1], torch.ones_like(ids[:1])), (padded, mask)
            for title, (inputs, attention_mask), options in (
                ("greedy", single, {}),
                ("left padding", batch, {}),
                ("use_cache false", batch, {"use_cache": False}),
                ("beam search", batch, {"num_beams": 2}),
            ):
                options = dict(GREEDY, attention_mask=attention_mask, **options)
                made = own.generate(inputs, **options)
                require_tokens(title, made, stock.generate(inputs, **options))


@check("sliding window")
def check_sliding_window(root):
    """`use_sliding_window` false leaves `sliding_window` without effect, true masks as a hand-made
    mask does.
    """
    ids = make_ids()
    folder = root / "qwen2-prepared"
    plain = {"insert_slice": False}
    expected = load_stock(root / "qwen2-source")(ids).logits
    window = {"sliding_window": 8, "max_window_layers": 0}
    own = make_own(folder, dict(plain, use_sliding_window=False, **window))
    require_close("use_sliding_window false", own(ids).logits, expected)
    own = make_own(folder, dict(plain, use_sliding_window=True, **window))
    actual = own(ids, use_cache=False).logits
    assert (actual - expected).abs().max() > 0.1, "use_sliding_window true has no effect"
    query, key = torch.arange(24).unsqueeze(1), torch.arange(24).unsqueeze(0)
    hidden = (key > query) | (key <= query - 8)
    mask = torch.zeros(24, 24).masked_fill(hidden, torch.finfo(torch.float32).min)
    by_hand = load(folder, fields=plain)(ids, attention_mask=mask.expand(2, 1, 24, 24)).logits
    require_close("use_sliding_window true", actual, by_hand)
    _, last = split_past(own, ids)
    require_close("windowed decode", last.logits, by_hand[:, 20:])
    options = dict(GREEDY, attention_mask=torch.ones_like(ids))
    made = own.generate(ids, use_cache=True, **options)
    require_tokens("windowed generate", made, own.generate(ids, use_cache=False, **options))


def make_own(folder, fields):
    """Load a directory with other values in its configuration file."""
    changed = scratch("changed")
    for path in Path(folder).iterdir():
        shutil.copy(str(path), str(changed / path.name))
    path = changed / "config_vacc.json"
    config = dict(json.loads(path.read_text("utf-8")), **fields)
    path.write_text(json.dumps(config), "utf-8")
    return load(changed)


@check("dtypes")
def check_dtypes(root):
    """Weights exact in float32, float16 and bfloat16; forward and generate wherever this torch
    multiplies that type on a CPU (2.1 has no float16).
    """
    ids = make_ids()
    expected = load_stock(root / "qwen2-source")(ids).logits
    for dtype in DTYPES:
        own = load(root / "qwen2-prepared", fields={"insert_slice": False}, **dtype_option(dtype))
        require_exact_state(own, root / "qwen2-prepared")
        if not can_multiply(dtype):
            continue
        logits = own(ids).logits
        assert logits.dtype == torch.float32, logits.dtype  # as in transformers 4.37
        error = relative_error(logits, expected)
        assert error < 0.05, f"{dtype}: relative error {error:.2g}"
        made = own.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
        assert made.shape[1] == 34


@check("quantize(8)")
def check_quantize(root):
    """`model.quantize(8)` gives the codes and scales that the package writes; a second call is
    refused.
    """
    ids = make_ids()
    own = load(root / "qwen2-prepared", fields={"insert_slice": False})
    expected = own(ids).logits
    assert own.quantize(8) is own
    error = relative_error(own(ids).logits, expected)
    assert 0 < error < 0.05, f"relative error {error:.2g}"
    state = own.state_dict()
    for name, tensor in stored(root / "qwen2-int8").items():
        assert torch.equal(state[name], tensor), f"{name} is not what the package writes"
    try:
        own.quantize(8)
        raise AssertionError("a second quantize is accepted")
    except ValueError as err:
        assert "already quantized" in str(err), str(err)


@check("int8 load")
def check_int8_load(root):
    """An int8 directory in three dtypes: codes and float16 scales exact, logits equal to
    `quantize(8)`.
    """
    ids = make_ids()
    for name in ("qwen2", "tied"):
        folder = root / (name + "-int8")
        expected = load(root / (name + "-prepared"), fields={"insert_slice": False}).quantize(8)
        for config_file in ("config.json", "config_vacc.json"):
            for dtype in DTYPES:
                own = load(folder, config_file, **dtype_option(dtype))
                require_exact_state(own, folder)
                if not can_multiply(dtype):
                    continue
                logits = own(ids).logits
                assert logits.dtype == torch.float32, logits.dtype  # as in transformers 4.37
                error = relative_error(logits, expected(ids).logits[:, -logits.shape[1] :])
                limit = 1e-6 if dtype == torch.float32 else 0.05
                assert error <= limit, f"{dtype}: relative error {error:.2g}"
    moved = load(folder, "config.json").to(torch.bfloat16)
    require_exact_state(moved, folder)


@check("int8 low memory")
def check_int8_low_memory(root):
    """`low_cpu_mem_usage` and `device_map`, in three dtypes: codes and scales exact."""
    if importlib.util.find_spec("accelerate") is None:
        raise NotApplicable("accelerate is not installed")
    ids, folder = make_ids(), root / "qwen2-int8"
    for dtype in DTYPES:
        own = load(folder, "config.json", low_cpu_mem_usage=True, **dtype_option(dtype))
        require_exact_state(own, folder)
        if can_multiply(dtype):
            plain = load(folder, "config.json", **dtype_option(dtype))
            require_close(str(dtype), own(ids).logits, plain(ids).logits, 0.0)
    own_class = type(own)
    for dtype in DTYPES:
        direct = own_class.from_pretrained(folder, low_cpu_mem_usage=True, **dtype_option(dtype))
        require_exact_state(direct, folder)
    automatic = load(folder, "config.json", low_cpu_mem_usage=True, **dtype_option("auto"))
    require_exact_state(automatic, folder)
    placed = load(folder, "config.json", device_map="cpu", **dtype_option(torch.bfloat16))
    require_exact_state(placed, folder)


@check("int8 save")
def check_int8_save(root):
    """Quantize, save, reload: the same logits and tokens; again through bfloat16."""
    ids = make_ids()
    for name in ("qwen2", "tied"):
        own = load(root / (name + "-prepared"), fields={"insert_slice": False}).quantize(8)
        folder, again = save_and_reload(own)
        tensors = stored(folder)
        linear = "model.layers.1.self_attn.k_proj.weight"
        assert tensors[linear].dtype == torch.int8, tensors[linear].dtype
        assert tensors[linear + "_scale"].dtype == torch.float16
        require_exact_state(again, folder)
        require_close("logits", again(ids).logits, own(ids).logits, 0.0)
        options = dict(GREEDY, attention_mask=torch.ones_like(ids))
        require_tokens("generate", again.generate(ids, **options), own.generate(ids, **options))
        _, low = save_and_reload(load(folder, "config.json", **dtype_option(torch.bfloat16)))
        state = low.state_dict()
        for key, tensor in tensors.items():
            if key.endswith("weight_scale"):
                assert state[key].dtype == torch.float16 and torch.equal(state[key], tensor), key


@check("stock refuses int8")
def check_guard(root):
    """Stock code refuses an int8 directory instead of reading codes as weights."""
    for name in ("qwen2-int8", "llama-int8", *(["qwen3-int8"] if VERSION >= (4, 51) else [])):
        try:
            AutoModelForCausalLM.from_pretrained(root / name, trust_remote_code=False)
        except (ValueError, KeyError, AttributeError, TypeError) as err:
            assert "quant_method" in str(err) or "rope_scaling" in str(err), str(err)
        else:
            if VERSION < (4, 38):
                raise KnownLimit("transformers 4.37 does not look at quantization_config")
            raise AssertionError(f"{name} loads in stock transformers")


@check("config")
def check_config(root):
    """Fields, defaults, round trip of `save_pretrained`, and refusal of ten wrong values."""
    remote = {"trust_remote_code": True, "_configuration_file": "config_vacc.json"}
    for name in ("qwen2-prepared", "qwen2-int8", "qwen3-prepared", "qwen3-yarn-int8"):
        config = AutoConfig.from_pretrained(root / name, **remote)
        raw = json.loads((root / name / "config_vacc.json").read_text("utf-8"))
        assert config.insert_slice is True and config.iter_num == 0
        assert config.to_dict()["model_type"] == raw["model_type"], config.model_type
        assert config.quantization_bit == raw.get("quantization_bit", 0)
        assert config.rope_theta == raw["rope_theta"] and config.eos_token_id == raw["eos_token_id"]
        folder = scratch("config")
        config.iter_num = 1
        config.save_pretrained(str(folder))
        again = type(config).from_pretrained(str(folder))
        written, expected = again.to_dict(), config.to_dict()
        expected.pop("_name_or_path", None)
        different = [key for key in expected if written.get(key) != expected[key]]
        assert not different, f"changed by saving: {different}"
    own_class = type(config)
    for fields in (
        {"hidden_size": 0},
        {"hidden_size": 66},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 3},
        {"quantization_bit": 4},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
        {"rope_theta": -1.0},
        {"use_sliding_window": True, "sliding_window": 0},
    ):
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        try:
            own_class(**dict(sizes, **fields))
        except ValueError:
            continue
        raise AssertionError(f"accepted: {fields}")


def package_runtime():
    if sys.version_info < (3, 10):  # noqa: UP036
        raise NotApplicable("the package needs Python 3.10")
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("vacc_deploy.reference.loader")


def require_old_is_refused(runtime, folder):
    """Where the library cannot read the directory, the package must say which version can."""
    if VERSION >= (4, 43):
        return
    try:
        runtime.load_model(folder)
    except importlib.import_module("vacc_deploy.errors").CheckpointError as err:
        assert "transformers 4.43" in str(err) and transformers.__version__ in str(err), str(err)
    else:
        raise AssertionError(f"transformers {transformers.__version__} reads llama3")
    raise NotApplicable("transformers before 4.43 cannot read llama3, and the error names 4.43")


@check("package loader")
def check_package_qwen2(root):
    """`vacc-deploy`'s own loader on prepared and int8 directories of Qwen2, and of Qwen3 with
    yarn.
    """
    runtime = package_runtime()
    ids = make_ids()
    expected = load_stock(root / "qwen2-source")(ids).logits[:, -1:]
    require_close("prepared", runtime.load_model(root / "qwen2-prepared")(ids).logits, expected)
    expected = stored(root / "expected")["qwen3-yarn"][:, -1:]
    own = runtime.load_model(root / "qwen3-yarn-prepared")
    require_close("Qwen3", own(ids).logits, expected)
    own = runtime.load_model(root / "qwen3-yarn-int8")
    require_exact_state(own, root / "qwen3-yarn-int8")
    for dtype in DTYPES:
        own = runtime.load_model(root / "qwen2-int8", dtype=dtype)
        require_exact_state(own, root / "qwen2-int8")
        assert not can_multiply(dtype) or torch.isfinite(own(ids).logits).all()


@check("Llama")
def check_llama(root):
    """Stock Llama with `llama3` rotary scaling; before 4.43 `vacc-deploy` names the version that
    is needed.
    """
    runtime = package_runtime()
    require_old_is_refused(runtime, root / "llama-prepared")
    own = runtime.load_model(root / "llama-prepared")
    stock = load_stock(root / "llama-source")
    require_close("logits", own(make_ids()).logits, stock(make_ids()).logits)


@check("Llama int8")
def check_llama_int8(root):
    """An int8 Llama directory through `vacc-deploy`: exact state, logits and tokens of the
    quantized stock model; before 4.43 as above.
    """
    runtime = package_runtime()
    require_old_is_refused(runtime, root / "llama-int8")
    ids = make_ids()
    reference = runtime.source_module("quantization_vacc").quantize(
        load_stock(root / "llama-source")
    )
    expected = reference(ids).logits
    for dtype in DTYPES:
        own = runtime.load_model(root / "llama-int8", dtype=dtype)
        require_stored_tensors(own, stored(root / "llama-int8"))
        if not can_multiply(dtype):
            continue
        assert own.dtype == dtype, own.dtype  # up to 4.45 Llama gives float32 logits whatever this
        logits = own(ids).logits
        error = relative_error(logits, expected)
        limit = 1e-5 if dtype == torch.float32 else 0.05
        assert error <= limit, f"{dtype}: relative error {error:.2g}"
        options = dict(GREEDY, attention_mask=torch.ones_like(ids))
        made = own.generate(ids, **options)
        if dtype == torch.float32:
            require_tokens("generate", made, reference.generate(ids, **options))


# Registers its checks behind these: the order of the columns.
import check_architectures  # noqa: E402, F401

# ---- running them -----------------------------------------------------------------------------


def run_checks(root, only=None):
    """Return {title: {"ok": true, false or null, "known": ..., "error": ..., "about": ...}}."""
    results = {}
    for title, function in CHECKS.items():
        if only and title not in only:
            continue
        about = " ".join(function.__doc__.split())
        result = {"ok": True, "known": False, "error": None, "about": about}
        try:
            with torch.no_grad():
                function(root)
        except NotApplicable as err:
            result.update(ok=None, error=str(err))
        except KnownLimit as err:
            result.update(ok=False, known=True, error=str(err))
        except Exception as err:  # every cell is reported, whatever went wrong in it
            first = (str(err).strip().splitlines() or [""])[0]
            where = inspect.trace()[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            result.update(ok=False, error=f"{type(err).__name__}: {first[:200]} ({place})")
        results[title] = result
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directories", type=Path)
    parser.add_argument("--json", type=Path, help="write the results here, not to stdout")
    parser.add_argument("--only", action="append", help="run this check only; may be repeated")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        results = run_checks(arguments.directories.resolve(), arguments.only)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    report = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "checks": results,
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.json:
        arguments.json.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)
    bad = [result for result in results.values() if result["ok"] is False and not result["known"]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
