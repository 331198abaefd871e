"""The calibrated quantizer in plain torch, in float64 and without haste.

Nothing of ``vacc_deploy.quantize`` is used: every formula stands here a second time, in its
simplest form. One linear at a time, the whole model rerun for each; normal equations solved by
explicit inverses; a column loop; every candidate of a scale judged on every weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from checkpoint_builders import read_tensors

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import linear_name
from vacc_deploy.reference.decoder import Positions

STAGES = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
# Whose outputs are added to the residual: their tokens are weighted by its size.
WEIGHTED = ("o", "down")


class PlainModel:
    """The decoder in plain torch, run from the embedding on for every question asked of it."""

    def __init__(self, source: Path, tokens: torch.Tensor) -> None:
        self.config, self.tokens = Checkpoint.open(source).config, tokens
        self.weights = {name: tensor.double() for name, tensor in read_tensors(source).items()}
        positions = Positions.build(self.config, tokens.shape[1])
        self.cos, self.sin = positions.cos.double(), positions.sin.double()

    def linear(self, layer: int, name: str, inputs: torch.Tensor) -> torch.Tensor:
        full = linear_name(layer, name)
        return F.linear(inputs, self.weights[f"{full}.weight"], self.weights.get(f"{full}.bias"))

    def norm(self, layer: int, name: str, hidden: torch.Tensor) -> torch.Tensor:
        size = (hidden.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        return hidden / size * self.weights[f"model.layers.{layer}.{name}.weight"]

    def rotate(self, states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, -1)
        return states * self.cos + torch.cat((-second, first), -1) * self.sin

    def attend(self, layer: int, inputs: torch.Tensor) -> torch.Tensor:
        rows, seq, _ = inputs.shape
        query, key, value = (
            self.linear(layer, name, inputs)
            .view(rows, seq, -1, self.config.head_dim)
            .transpose(1, 2)
            for name in STAGES["qkv"]
        )
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        query, key = self.rotate(query), self.rotate(key)
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
        scores = query @ key.transpose(2, 3) / self.config.head_dim**0.5
        future = torch.ones(seq, seq).triu(1).bool()
        attended = scores.masked_fill(future, float("-inf")).softmax(-1) @ value
        return attended.transpose(1, 2).reshape(rows, seq, -1)

    def stage_inputs(self, last: int, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model as it is now; return the inputs of a stage and the residual there."""
        hidden = self.weights["model.embed_tokens.weight"][self.tokens]
        for layer in range(last + 1):
            seen = {"qkv": (self.norm(layer, "input_layernorm", hidden), hidden)}
            seen["o"] = self.attend(layer, seen["qkv"][0]), hidden
            hidden = hidden + self.linear(layer, "o_proj", seen["o"][0])
            inputs = self.norm(layer, "post_attention_layernorm", hidden)
            seen["gate_up"] = inputs, hidden
            gate, up = (self.linear(layer, name, inputs) for name in STAGES["gate_up"])
            seen["down"] = F.silu(gate) * up, hidden
            hidden = hidden + self.linear(layer, "down_proj", seen["down"][0])
        return seen[stage]


@dataclass(frozen=True)
class Settings:
    """What shapes the result; see ``QuantizeOptions`` for those of the same name."""

    num_held_out: int
    num_shared: int
    act_order: bool = True
    shrinkage: float = 0.3
    dampening_frac: float = 0.1
    scale_search: bool = True
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What one linear should become; the errors are None where nothing was compared."""

    codes: torch.Tensor
    scale: torch.Tensor
    method: str
    error_gptq: float | None = None
    error_rtn: float | None = None
    correction: float = 0.0
    scale_shrink: float = 0.0


def slow_calibration(
    source: Path, tokens: torch.Tensor, settings: Settings, deployed: Mapping[str, torch.Tensor]
) -> dict[str, Expected]:
    """Return what every linear should become, behind the linears that were made of those before.

    Args:
        source: the float checkpoint.
        tokens: [rows, seq], held-out rows last.
        settings: of the run.
        deployed: codes and scales by their names. Those of earlier linears are taken from here, so
            that a rounding that falls the other way does not spread; were one of them wrong, its
            own comparison would show it.
    """
    model, float_model, result = PlainModel(source, tokens), PlainModel(source, tokens), {}
    for layer in range(model.config.num_hidden_layers):
        for stage, names in STAGES.items():
            solver = None
            if stage not in settings.skipped:
                solver = StageReference(model, float_model, layer, stage, settings)
            for name in names:
                full = linear_name(layer, name)
                weight = model.weights[f"{full}.weight"]
                result[full] = solver.quantize(weight) if solver else rounded(weight)
            for full in (linear_name(layer, name) for name in names):
                scale = deployed[f"{full}.weight_scale"].double()[:, None]
                model.weights[f"{full}.weight"] = deployed[f"{full}.weight"].double() * scale
    return result


class StageReference:
    """The inputs of one stage, what follows from them, and the linears quantized with that."""

    def __init__(
        self,
        model: PlainModel,
        float_model: PlainModel,
        layer: int,
        stage: str,
        settings: Settings,
    ) -> None:
        inputs, residual = model.stage_inputs(layer, stage)
        first_fit = settings.num_held_out
        has_original = stage != "down" and settings.num_shared > 0
        original = float_model.stage_inputs(layer, stage)[0] if has_original else inputs
        weights = torch.ones(*inputs.shape[:2], 1, dtype=torch.float64)
        if stage in WEIGHTED:
            weights = 1 / (residual.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        self.settings, self.regression = settings, None
        self.seen, self.meant = (x[:first_fit].flatten(0, 1) for x in (inputs, original))
        fit = (weights * inputs)[first_fit:].flatten(0, 1)
        hessian = ridged(fit.T @ fit, settings.shrinkage, settings.dampening_frac)
        self.columns = list(range(len(hessian)))[::-1]
        if settings.act_order:
            self.columns.sort(key=lambda column: float(hessian[column, column]), reverse=True)
        self.inverses = remaining_inverses(hessian, self.columns)
        if has_original:
            rows = slice(first_fit, first_fit + settings.num_shared)
            shift = (weights * (original - inputs))[rows].flatten(0, 1)
            shared = (weights * inputs)[rows].flatten(0, 1)
            self.regression = torch.linalg.inv(ridged(shared.T @ shared, 0.5, 0.3)) @ (
                shared.T @ shift
            )

    def quantize(self, weight: torch.Tensor) -> Expected:
        plain = rounded(weight)
        error_rtn = self.error(weight, plain.codes, plain.scale)
        target, strength = weight, 0.0
        if self.regression is not None:
            shift = weight @ self.regression.T
            strength = self.strength(weight, shift)
            target = weight + strength * shift
        absmax = absmax_scale(target)
        scale = absmax
        if self.settings.scale_search:
            cost = torch.empty(len(self.columns), dtype=torch.float64)
            for column, inverse in zip(self.columns, self.inverses, strict=True):
                cost[column] = 1 / inverse[0]
            scale = best_scale(target, absmax, cost)
        codes = pinned(target, self.solve_columns(target, scale), scale)
        error_gptq = self.error(weight, codes, scale)
        if error_gptq >= error_rtn:
            return Expected(plain.codes, plain.scale, "rtn", error_gptq, error_rtn)
        shrink = (1 - scale.double() / absmax.double()).mean().item()
        return Expected(codes, scale, "gptq", error_gptq, error_rtn, strength, shrink)

    def strength(self, weight: torch.Tensor, shift: torch.Tensor) -> float:
        """Three quarters of the least-squares fit on the held-out tokens, that within 0 to 1."""
        given = (self.seen @ shift.T).reshape(-1, 1)
        wanted = ((self.meant - self.seen) @ weight.T).reshape(-1, 1)
        if not given.any():
            return 0.0
        return 0.75 * min(max(torch.linalg.lstsq(given, wanted).solution.item(), 0.0), 1.0)

    def solve_columns(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Round column by column; the later ones make up for each error as well as they can."""
        weight, step = weight.clone(), scale.double()
        codes = torch.empty(weight.shape, dtype=torch.int8)
        for number, (column, inverse) in enumerate(zip(self.columns, self.inverses, strict=True)):
            code = (weight[:, column] / step).round().clamp(-127, 127)
            codes[:, column] = code.to(torch.int8)
            error = (weight[:, column] - code * step) / inverse[0]
            weight[:, self.columns[number:]] -= error[:, None] * inverse
        return codes

    def error(self, weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> float:
        wanted = self.meant @ weight.T
        got = self.seen @ (codes.double() * scale.double()[:, None]).T
        return (torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted)).item()


def ridged(hessian: torch.Tensor, shrinkage: float, dampening_frac: float) -> torch.Tensor:
    diagonal = torch.diag(hessian.diagonal())
    identity = torch.eye(len(hessian), dtype=torch.float64)
    damping = dampening_frac * hessian.diagonal().mean() * identity
    return (1 - shrinkage) * hessian + shrinkage * diagonal + damping


def remaining_inverses(hessian: torch.Tensor, columns: list[int]) -> list[torch.Tensor]:
    """The first row of the inverse of what is left of the Hessian before each column is solved."""
    result = []
    for number in range(len(columns)):
        left = columns[number:]
        result.append(torch.linalg.inv(hessian[left][:, left])[0])
    return result


def absmax_scale(weight: torch.Tensor) -> torch.Tensor:
    return (weight.float().abs().amax(1) / 127).half()


def best_scale(weight: torch.Tensor, absmax: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    """The best of 21 scales per row, from absmax / 127 down to 0.8 of it.

    A scale that would cut more than 15 weights of the row is not taken.
    """
    best = absmax.clone()
    for row, largest_scale in enumerate(absmax.tolist()):
        lowest = float("inf")
        for step in range(21):
            tried = torch.tensor(largest_scale * (1 - 0.01 * step)).half()
            beyond = (weight[row].abs() - 127 * tried.double()).clamp_min(0)
            total = float((cost * (tried.double() ** 2 / 12 + beyond**2)).sum())
            if total < lowest and (step == 0 or int((beyond > 0).sum()) <= 15):
                best[row], lowest = tried, total
    return best


def pinned(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Every row gets a code of ±127, where its largest weight is."""
    codes = codes.clone()
    for row in range(len(codes)):
        if codes[row].abs().max() < 127:
            column = int(weight[row].abs().argmax())
            codes[row, column] = 127 if weight[row, column] > 0 else -127
    return codes


def rounded(weight: torch.Tensor) -> Expected:
    scale = absmax_scale(weight)
    codes = (weight / scale.double()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Expected(codes, scale, "rtn")
