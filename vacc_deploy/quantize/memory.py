"""How much memory a run will hold at most, as a sum of named parts: its rows and one stage.

Follows what ``walk``, ``layer``, ``linear`` and ``gptq`` hold at a time. The parts are those of the
moment at which the sum is largest.
"""

from __future__ import annotations

from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig
from vacc_deploy.quantize.layer_quantizer import MAX_HELD_OUT_TOKENS
from vacc_deploy.quantize.row_buffers import DEVICE, DISK, HOST, choose_place
from vacc_deploy.quantize.shards import MAX_PENDING_LAYERS, NUM_WRITERS
from vacc_deploy.quantize.workload import Workload
from vacc_deploy.reference.decoder import DOWN, GATE_UP, OUTPUT, QKV, STAGE_LINEARS
from vacc_deploy.solver.hessian import HESSIAN_BLOCK

Parts = dict[str, int]

# Code and tables that torch loads with its first products, and what malloc keeps for later.
CPU_LIBRARY_BYTES = 64 << 20
CUDA_LIBRARY_BYTES = 1536 << 20
_FLOAT = 4
# Beside those that wait: one is made; of rounded ones, one more is begun.
_CODE_LAYERS = MAX_PENDING_LAYERS + 1
_ROUNDED_LAYERS = NUM_WRITERS + 2


def rounding_memory(config: ModelConfig, runtime_bytes: int) -> Parts:
    """Return the parts of a run without calibration; ``runtime_bytes`` is held already."""
    return {"runtime": runtime_bytes, "codes": _ROUNDED_LAYERS * layer_weights(config)}


def calibrated_memory(
    work: Workload, runtime_bytes: int, *, device_free: int | None, host_available: int
) -> tuple[Parts, Parts | None]:
    """Return the parts in the host's memory, and those on the device or None.

    Args:
        work: the run.
        runtime_bytes: what the process holds without any of it.
        device_free: bytes free on the device; None where that is the host.
        host_available: bytes available on the host.
    """
    weights = layer_weights(work.config)
    rows = _place_rows(work, device_free, host_available)
    largest = max(_linear_sizes(work.config))
    computing = {
        "weights of two layers": 2 * weights * work.weight_bytes,
        "codes": _CODE_LAYERS * weights,
        **_worst_moment(work),
    }
    host: Parts = {"runtime": runtime_bytes, "rows": rows.get(HOST, 0)}
    if device_free is None:
        return host | computing, None
    host |= {"codes": _CODE_LAYERS * weights, "a weight on its way": largest * work.weight_bytes}
    return host, {"rows": rows.get(DEVICE, 0)} | computing


def spooled_bytes(work: Workload, *, device_free: int | None, host_available: int) -> int:
    """Return the bytes of the rows that will lie on the disk; arguments as above."""
    return _place_rows(work, device_free, host_available).get(DISK, 0)


def layer_weights(config: ModelConfig) -> int:
    """Return the number of weights in the linears of one layer."""
    return sum(_linear_sizes(config))


def _linear_sizes(config: ModelConfig) -> list[int]:
    return [out * inp for out, inp in map(config.linear_shape, LAYER_LINEARS)]


def _place_rows(work: Workload, device_free: int | None, host_available: int) -> Parts:
    """Return the bytes of the rows by their place, in the order in which they are allocated."""
    hidden, width = work.config.hidden_size, work.config.linear_shape("o_proj")[1]
    places: Parts = {}
    for tokens, features in (
        (work.num_tokens, hidden),
        (work.num_original_tokens, hidden),
        (work.num_tokens, width),
    ):
        num_bytes = tokens * features * work.compute.dtype.itemsize
        place = choose_place(num_bytes, device_free, host_available)
        places[place] = places.get(place, 0) + num_bytes
        if place == DEVICE and device_free is not None:
            device_free -= num_bytes
        elif place == HOST:
            host_available -= num_bytes
    return places


def _worst_moment(work: Workload) -> Parts:
    moments = []
    for stage in (QKV, OUTPUT, GATE_UP, DOWN):
        settled = _deployed_bytes(work, stage)
        kept = min(work.kept_inner_bytes, work.inner_bytes) if stage == DOWN else 0
        common = {"weights in use": settled, "kept inputs of down": kept}
        if stage == DOWN and not work.with_down:
            continue
        for parts in (_observing(work, stage), _factoring(work, stage), _solving(work, stage)):
            moments.append(common | parts)
    return max(moments, key=lambda parts: sum(parts.values()))


def _deployed_bytes(work: Workload, stage: str) -> int:
    """Return the bytes of the weights that are multiplied within a stage.

    Deployed ones are in the compute dtype; those of the float stream too, in memory of their own
    where they are not stored so.
    """

    def count(*stages: str) -> int:
        linears = [name for each in stages for name in STAGE_LINEARS[each]]
        return sum(out * inp for out, inp in map(work.config.linear_shape, linears))

    itemsize = work.compute.dtype.itemsize
    before = {QKV: (), OUTPUT: (QKV,), GATE_UP: (OUTPUT,), DOWN: (GATE_UP,)}[stage]
    original = {QKV: (), OUTPUT: (QKV, OUTPUT), GATE_UP: (OUTPUT, GATE_UP, DOWN), DOWN: (DOWN,)}
    total = count(*before, stage)
    if work.num_original and itemsize != work.weight_bytes:
        total += count(*original[stage])
    return total * itemsize


def _has_correction(work: Workload, stage: str) -> bool:
    return work.num_original > 0 and stage != DOWN


def _widths(work: Workload, stage: str) -> tuple[int, int]:
    """Return the in_features of a stage and its weights of the largest linear."""
    shapes = [work.config.linear_shape(name) for name in STAGE_LINEARS[stage]]
    return shapes[0][1], max(out * inp for out, inp in shapes)


def _observing(work: Workload, stage: str) -> Parts:
    """Return what is held while the sums over a stage's inputs grow."""
    in_features, _ = _widths(work, stage)
    itemsize = work.compute.dtype.itemsize
    squares = _FLOAT * in_features**2
    if _has_correction(work, stage):
        # The sum that the float stream shares, the cross sum, and the product to be added to it.
        squares += (_FLOAT * (1 + (work.num_plain > 0)) + itemsize) * in_features**2
    return {
        "Hessians": squares + _panel_bytes(in_features),
        "activations": _activations(work, stage),
    }


def _activations(work: Workload, stage: str) -> int:
    """Return the bytes of one batch on its way through a stage."""
    config, itemsize = work.config, work.compute.dtype.itemsize
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.linear_shape("q_proj")[0]
    streams = 4 if work.num_original else 2  # the residual and its norm, of each stream
    in_float = 3 * _FLOAT  # a norm, or a rotation, computes in float32
    a_token = {
        QKV: streams * hidden * itemsize + in_float * hidden,
        OUTPUT: streams * hidden * itemsize + query * (6 * itemsize + in_float),
        GATE_UP: (streams * hidden + 2 * inner) * itemsize + in_float * hidden,
        DOWN: (2 * hidden + 3 * inner) * itemsize,
    }[stage]
    return min(work.batch_rows, work.num_rows) * work.sequence_length * a_token


def _factoring(work: Workload, stage: str) -> Parts:
    """Return what is held while the Hessian is factored."""
    in_features, _ = _widths(work, stage)
    squares = 2 + work.act_order  # the Hessian, itself permuted, the factor
    if _has_correction(work, stage):
        squares += 3  # the shared sum, the cross sum, the correction
    panel = _panel_bytes(in_features) if work.act_order else 0
    return {"Hessians": squares * _FLOAT * in_features**2 + panel}


def _panel_bytes(in_features: int) -> int:
    return min(HESSIAN_BLOCK, in_features) * in_features * _FLOAT


def _solving(work: Workload, stage: str) -> Parts:
    """Return what is held while the largest linear of a stage is solved."""
    in_features, num_weights = _widths(work, stage)
    corrected = _has_correction(work, stage)
    # Permuted, its errors, its targets; and the codes of rounding and of the solver.
    floats = 3 + corrected + (work.weight_bytes != _FLOAT)
    compared = min(MAX_HELD_OUT_TOKENS, work.num_held_out * work.sequence_length)
    sample = compared * (2 * in_features + num_weights // in_features) * _FLOAT
    return {
        "Hessians": (1 + corrected) * _FLOAT * in_features**2,
        "solver": (floats * _FLOAT + 2) * num_weights,
        "held-out sample": sample,
    }
