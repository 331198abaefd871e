"""Compare the headers of a checkpoint's files with its index and its configuration."""

from __future__ import annotations

import re

from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo
from vacc_deploy.formats.dtypes import STORED_FLOATS
from vacc_deploy.formats.layouts import GGUF, LAYOUTS
from vacc_deploy.formats.q8_0 import Q8_0
from vacc_deploy.models.config import EMBEDDING, LM_HEAD, ModelConfig

_LAYER = re.compile(r"model\.layers\.([0-9]{1,6})\.")


def compare_with_index(
    weight_map: dict[str, str] | None, shards: dict[str, ShardHeader]
) -> list[str]:
    """Return where the index and the shards disagree, and tensors stored twice."""
    problems, holder, stored = [], dict[str, str](), dict[str, str]()
    for file, shard in shards.items():
        for info in shard.tensors:
            if holder.get(info.name) == file:
                names = f"as {stored[info.name]} and {info.stored_name}"
                problems.append(f"{info.name} is stored twice in {file}, {names}")
            elif info.name in holder:
                problems.append(f"{info.name} is in both {holder[info.name]} and {file}")
            holder[info.name], stored[info.name] = file, info.stored_name
    if weight_map is None:
        return problems
    for tensor, file in weight_map.items():
        got = holder.get(tensor, "no file")
        if got != file:
            problems.append(f"{tensor} should be in {file} by the index, it is in {got}")
    # By the index nobody would read these.
    extra = sorted(holder.keys() - weight_map.keys())
    problems += [f"{tensor} in {holder[tensor]} is not in the index" for tensor in extra]
    return problems


def compare_with_config(config: ModelConfig, tensors: dict[str, TensorInfo]) -> list[str]:
    """Return the tensors that are missing, unexpected, of another shape or dtype."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        name: (shape, STORED_FLOATS) for name, shape in config.expected_tensors().items()
    }
    if config.quantization_format:
        # Codes and scales stand where the float weight would.
        for name, (out_features, in_features) in config.linear_names().items():
            del expected[f"{name}.weight"]
            stored = LAYOUTS[config.quantization_format].tensors(out_features, in_features)
            for suffix, (shape, dtype) in stored.items():
                expected[f"{name}.{suffix}"] = (shape, (dtype,))
    if config.quantization_format == GGUF:
        for name in expected.keys() & {EMBEDDING, LM_HEAD}:
            expected[name] = (expected[name][0], (*STORED_FLOATS, Q8_0))
    problems = []
    for name, (shape, dtypes) in expected.items():
        info = tensors.get(name)
        if info is None:
            untied = "; or set tie_word_embeddings there" if name == LM_HEAD else ""
            problems.append(
                f"{name} is missing (config.json needs it, shape {list(shape)}{untied})"
            )
        elif info.shape != shape:
            got = f"{name} in {info.path.name} has shape {list(info.shape)}"
            problems.append(f"{got}, config.json needs {list(shape)}")
        elif info.dtype not in dtypes:
            got = f"{name} in {info.path.name} is {info.dtype}"
            problems.append(f"{got}, expected {' or '.join(dtypes)}")
    num_layers, extra = config.num_hidden_layers, dict[str, TensorInfo]()
    for name, info in tensors.items():
        layer = _LAYER.match(name)
        if layer and int(layer[1]) >= num_layers:
            extra[layer[1]] = info
        elif name not in expected:
            problems.append(f"{name} in {info.path.name} belongs to no part of this config.json")
    if extra:
        last = max(extra, key=int)
        problems.append(
            f"model.layers.{last} in {extra[last].path.name} is a layer more than config.json has: "
            f"got num_hidden_layers {num_layers}, the weights have {int(last) + 1} layers"
        )
    return problems
