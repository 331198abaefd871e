"""What the checks of the matrix share: loading, the comparisons, and the table of checks.

Python 3.8 syntax: this file runs wherever the source files do.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

FOLDER = tempfile.mkdtemp(prefix="vacc-matrix-")
os.environ.update(HF_HOME=FOLDER, HF_HUB_OFFLINE="1", HF_MODULES_CACHE=os.path.join(FOLDER, "code"))

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
TOLERANCE = 1e-5
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # forward only where torch multiplies it
FILES = ("configuration_qwen2_vacc.py", "modeling_qwen2_vacc.py", "quantization_vacc.py")
GREEDY = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
GREEDY.update(temperature=None, top_p=None)  # the published generation_config samples
CHECKS = {}


class KnownLimit(AssertionError):
    """The check fails for a reason that no file of ours can change; the text says which."""


class NotApplicable(Exception):
    """The environment lacks what the check is about; the text says what."""


def check(title):
    """Register a function under the title of its row in the table."""

    def register(function):
        CHECKS[title] = function
        return function

    return register


# ---- helpers ----------------------------------------------------------------------------------


def dtype_option(dtype):
    return {"dtype" if VERSION >= (4, 56) else "torch_dtype": dtype}


def load(folder, config_file="config_vacc.json", auto=AutoModelForCausalLM, fields=None, **options):
    """Load a directory through the Auto classes, as the compiler and the users do."""
    remote = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, _configuration_file=config_file, **remote)
    for name, value in (fields or {}).items():
        setattr(config, name, value)
    model = auto.from_pretrained(folder, config=config, **dict(remote, **options))
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    return model.eval()


def load_stock(folder, **options):
    """Load a directory with the library's own Qwen2, Qwen3 or Llama."""
    options = dict({"attn_implementation": "eager"}, **dtype_option(torch.float32), **options)
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def stored(folder):
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(str(path)))
    return tensors


def can_multiply(dtype):
    """Tell whether this torch multiplies matrices of the type on the CPU: 2.1 has no float16."""
    try:
        torch.ones(2, 2, dtype=dtype) @ torch.ones(2, 2, dtype=dtype)
    except RuntimeError:
        return False
    return True


def scratch(name):
    return Path(tempfile.mkdtemp(prefix=name + "-", dir=FOLDER))


def make_ids():
    return torch.randint(1, 256, (2, 24), generator=torch.Generator().manual_seed(2))


def left_padded():
    ids, mask = make_ids(), torch.ones(2, 24, dtype=torch.int64)
    mask[0, :5] = 0
    return ids.masked_fill(mask == 0, 0), mask


def require_close(name, actual, expected, tolerance=TOLERANCE):
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}"
    difference = (actual.float() - expected.float()).abs().max().item()
    assert difference <= tolerance, f"{name}: differs by {difference:.2g}"


def relative_error(actual, expected):
    return ((actual.float() - expected).norm() / expected.norm()).item()


def require_tokens(name, actual, expected):
    assert actual.tolist() == expected.tolist(), f"{name}: other tokens than stock"


def require_stored_tensors(model, expected):
    """Every stored tensor is in the model, unchanged but for the dtype of floats."""
    state = model.state_dict()
    for name, tensor in expected.items():
        is_int8 = tensor.dtype == torch.int8 or name.endswith("weight_scale")
        dtype = tensor.dtype if is_int8 else model.dtype
        assert state[name].dtype == dtype, f"{name} is {state[name].dtype}"
        assert torch.equal(state[name], tensor.to(dtype)), f"{name} changed"


def require_exact_state(model, folder):
    """The model has the stored tensors, unchanged, and neither a tensor nor a buffer more."""
    state, expected = model.state_dict(), stored(folder)
    if model.config.tie_word_embeddings:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert sorted(state) == sorted(expected), sorted(set(state) ^ set(expected))[:3]
    require_stored_tensors(model, expected)
    others = [name for name, _ in model.named_buffers() if name not in state]
    assert not others, f"buffers outside the checkpoint: {others[:3]}"


def split_past(model, ids, **options):
    """Return the logits of ids[:, 20:] after a first call on ids[:, :20]."""
    first = model(ids[:, :20], use_cache=True, **options)
    last = model(ids[:, 20:], past_key_values=first.past_key_values, use_cache=True)
    return first, last


def save_and_reload(model, **options):
    """Save, put the files beside the weights as the documentation says, and load again."""
    folder = scratch("saved")
    model.save_pretrained(str(folder))
    for name in FILES:
        shutil.copy(str(ROOT / "source_code" / name), str(folder / name))
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    assert config.get("auto_map"), "auto_map is not in the saved config.json"
    return folder, load(folder, "config.json", **options)
