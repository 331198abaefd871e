"""Tiny random models, and the three files of source_code copied beside their weights."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from reference_logits import edit_json
from texts import SOURCE_DIR
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.models.vacc_config import AUTO_MAP

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def flat():
    """The modeling file loaded by path, and the two siblings it found."""
    spec = importlib.util.spec_from_file_location(
        "vacc_flat_modeling", SOURCE_DIR / "modeling_qwen2_vacc.py"
    )
    modeling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modeling)
    return SimpleNamespace(
        modeling=modeling,
        configuration=sys.modules["configuration_qwen2_vacc"],
        quantization=sys.modules["quantization_vacc"],
    )


def randomize(model):
    # Norm weights of one and biases of zero would hide a mistake.
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(0.5, 0.3, generator=generator)
    return model.eval()


STOCK = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


@pytest.fixture
def make_stock():
    """Build the library's own Qwen2 or Qwen3 with eager attention."""

    def make(model_type="qwen2", **fields):
        torch.manual_seed(0)
        config_class, model_class = STOCK[model_type]
        config = config_class(**dict(SIZES, **fields))
        config._attn_implementation = "eager"
        return randomize(model_class(config))

    return make


@pytest.fixture
def make_llama():
    """Build the library's Llama with eager attention."""

    def make():
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES)
        config._attn_implementation = "eager"
        return randomize(LlamaForCausalLM(config))

    return make


@pytest.fixture
def make_dir(tmp_path):
    """Save a model, put the three files beside it and name them in config.json."""

    def make(model, name="checkpoint", **fields):
        folder = tmp_path / name
        model.save_pretrained(folder)
        for file_name in SOURCE_FILES:
            shutil.copy(SOURCE_DIR / file_name, folder / file_name)
        edit_json(folder / "config.json", **fields, auto_map=AUTO_MAP)
        return folder

    return make


@pytest.fixture
def load():
    def load_remote(folder, **arguments):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **arguments)
        return model.eval()

    return load_remote


@pytest.fixture
def make_pair(make_stock, make_dir, load):
    """Return (the library's model, ours loaded from its files)."""

    def make(**fields):
        stock = make_stock(**fields)
        return stock, load(make_dir(stock))

    return make


@pytest.fixture
def make_own(flat):
    """Build our model from the flat files, without a checkpoint."""

    def make(**fields):
        torch.manual_seed(0)
        config = flat.configuration.Qwen2Config(**dict(SIZES, **fields))
        return randomize(flat.modeling.Qwen2ForCausalLM(config))

    return make


@pytest.fixture
def ids():
    return torch.randint(1, 256, (2, 24), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def left_padded(ids):
    """(ids, mask, positions) where row 0 begins with five padded tokens."""
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return ids.masked_fill(mask == 0, 0), mask, (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.fixture
def run_python(tmp_path):
    """Run code with `python -I` in an empty folder."""

    def run(code):
        folder = tmp_path / "empty"
        folder.mkdir()
        return subprocess.run(
            [sys.executable, "-I", "-c", code],
            cwd=folder,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
