"""Compare the headers of a checkpoint's files with its index and its configuration."""

from __future__ import annotations

import re
from collections.abc import Collection

from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo
from vacc_deploy.formats.dtypes import STORED_FLOATS
from vacc_deploy.formats.layouts import GGUF, LAYOUTS
from vacc_deploy.formats.q8_0 import Q8_0
from vacc_deploy.models.config import EMBEDDING, LM_HEAD, ModelConfig
from vacc_deploy.problems.configuration import (
    LAYER_COUNT,
    MISSING_TENSOR,
    SPARE_TENSOR,
    WRONG_DTYPE,
    WRONG_SHAPE,
)
from vacc_deploy.problems.files import INDEX_DISAGREES, STORED_TWICE
from vacc_deploy.problems.problem import Problem

_LAYER = re.compile(r"model\.layers\.([0-9]{1,6})\.")


def compare_with_index(
    weight_map: dict[str, str] | None, shards: dict[str, ShardHeader]
) -> list[Problem]:
    """Return where the index and the shards disagree, and tensors stored twice."""
    problems, holder, stored = list[Problem](), dict[str, str](), dict[str, str]()
    for file, shard in shards.items():
        for info in shard.tensors:
            if holder.get(info.name) == file:
                names = f"as {stored[info.name]} and {info.stored_name}"
                text = f"{info.name} is stored twice in {file}, {names}"
                problems.append(STORED_TWICE.broken(text, where=f"{file}: {info.name}"))
            elif info.name in holder:
                text = f"{info.name} is in both {holder[info.name]} and {file}"
                problems.append(STORED_TWICE.broken(text, where=f"{file}: {info.name}"))
            holder[info.name], stored[info.name] = file, info.stored_name
    if weight_map is None:
        return problems
    for tensor, file in weight_map.items():
        got = holder.get(tensor, "no file")
        if got != file:
            text = f"{tensor} should be in {file} by the index, it is in {got}"
            problems.append(_index_problem(text, tensor, got=got, expected=file))
    # By the index nobody would read these.
    extra = sorted(holder.keys() - weight_map.keys())
    for tensor in extra:
        text = f"{tensor} in {holder[tensor]} is not in the index"
        problems.append(_index_problem(text, tensor, got=holder[tensor], expected="no file"))
    return problems


def _index_problem(text: str, tensor: str, *, got: str, expected: str) -> Problem:
    where = f"model.safetensors.index.json: {tensor}"
    return INDEX_DISAGREES.broken(text, where=where, got=got, expected=expected)


def compare_with_config(config: ModelConfig, tensors: dict[str, TensorInfo]) -> list[Problem]:
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
    problems = list[Problem]()
    for name, (shape, dtypes) in expected.items():
        info = tensors.get(name)
        if info is None:
            untied = "; or set tie_word_embeddings there" if name == LM_HEAD else ""
            text = f"{name} is missing (config.json needs it, shape {list(shape)}{untied})"
            problems.append(MISSING_TENSOR.broken(text, where=name, expected=list(shape)))
            continue
        found, where = f"{name} in {info.path.name}", f"{info.path.name}: {name}"
        if info.shape != shape:
            got, expected_shape = list(info.shape), list(shape)
            text = f"{found} has shape {got}, config.json needs {expected_shape}"
            problems.append(WRONG_SHAPE.broken(text, where=where, got=got, expected=expected_shape))
        elif info.dtype not in dtypes:
            allowed = " or ".join(dtypes)
            text = f"{found} is {info.dtype}, expected {allowed}"
            problems.append(WRONG_DTYPE.broken(text, where=where, got=info.dtype, expected=allowed))
    return problems + _find_unexpected(config, tensors, expected.keys())


def _find_unexpected(
    config: ModelConfig, tensors: dict[str, TensorInfo], expected: Collection[str]
) -> list[Problem]:
    """Return the tensors that no part of the model has, those of spare layers as one."""
    problems, num_layers, extra = list[Problem](), config.num_hidden_layers, dict[int, str]()
    for name, info in tensors.items():
        layer = _LAYER.match(name)
        if layer and int(layer[1]) >= num_layers:
            extra[int(layer[1])] = info.path.name
        elif name not in expected:
            text = f"{name} in {info.path.name} belongs to no part of this config.json"
            problems.append(SPARE_TENSOR.broken(text, where=f"{info.path.name}: {name}"))
    if extra:
        last = max(extra)
        text = (
            f"model.layers.{last} in {extra[last]} is a layer more than config.json has: "
            f"got num_hidden_layers {num_layers}, the weights have {last + 1} layers"
        )
        where = "config.json: num_hidden_layers"
        problems.append(LAYER_COUNT.broken(text, where=where, got=num_layers, expected=last + 1))
    return problems
