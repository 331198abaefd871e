"""The CUDA kernel without a GPU: interpreted beside the torch loop, and compiled for an H100.

Values and couplings are multiples of small powers of two, so that every sum is exact in any order
and the codes must be equal, halves included.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vacc_deploy.solver.block import Block
from vacc_deploy.solver.gptq import Factor, settle_leaf, solve

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
# Block sizes: full, one, odd, above and at a power of two; outputs: one, ragged, several programs,
# and enough for wide programs.
SHAPES = [(128, 40), (1, 3), (2, 33), (17, 1), (37, 65), (64, 31), (100, 5), (2, 16901)]


def exact_block(num_columns, num_outputs, *, spread=100):
    """Return a block whose sums are exact, its factor a view into a larger matrix.

    Args:
        spread: values reach this far from 0.
    """
    generator = torch.Generator().manual_seed(num_columns * 1000 + num_outputs)

    def grid(limit, shape, parts):
        return torch.randint(-limit, limit + 1, shape, generator=generator).float() / parts

    whole = grid(8, (num_columns + 7, num_columns + 9), 32)
    whole = torch.where(torch.ones_like(whole).triu(3) > 0, whole, torch.nan)
    values = grid(spread * 4, (num_columns, num_outputs), 4)
    return {
        # On the diagonal and below it there is NaN: the kernel must not read it.
        "unit_rows": whole[2 : 2 + num_columns, 4 : 4 + num_columns],
        "values": values,
        "targets": values + grid(8, values.shape, 4),
    }


def column_major_block():
    block = exact_block(50, 40)
    block["unit_rows"] = block["unit_rows"].T.contiguous().T
    return block


def far_block():
    block = exact_block(40, 36)
    generator = torch.Generator().manual_seed(0)
    far = torch.tensor(
        [127.5, 128.5, 2.0**22 + 1, 2.0**24, -(2.0**31), 1e30, torch.inf, -torch.inf]
    )
    block["targets"] = far[torch.randint(0, 8, (40, 36), generator=generator)]
    block["unit_rows"] = torch.zeros(40, 40)
    return block


def half_block():
    block = exact_block(6, 254)
    block["values"] = (torch.arange(254) - 127 + 0.5).expand(6, 254).contiguous()
    block["targets"] = block["values"].clone()
    block["unit_rows"] = torch.eye(6)
    return block


def nan_block():
    block = exact_block(20, 40)
    block["targets"][11, 7] = torch.nan
    return block


def whole_weight(in_features, leaf_columns, *, act_order):
    generator = torch.Generator().manual_seed(in_features)
    couplings = torch.randint(-4, 5, (in_features, in_features), generator=generator) / 16
    values = torch.randint(-520, 521, (21, in_features), generator=generator) / 4
    scale = 2.0 ** torch.randint(-8, -4, (21,), generator=generator)
    return {
        "unit_rows": couplings.triu(1) + torch.eye(in_features),
        "weight": values * scale[:, None],
        "scale": scale.half(),
        "order": torch.randperm(in_features, generator=generator) if act_order else None,
        "leaf_columns": leaf_columns,
    }


CASES = {
    **{f"{n}x{out}": exact_block(n, out) for n, out in SHAPES},
    "saturated": exact_block(60, 50, spread=170),
    "column-major": column_major_block(),
    "other sizes": {**exact_block(30, 40), "config": [64, 16, 2]},
    "far": far_block(),
    "halves": half_block(),
    "nan": nan_block(),
    "whole": whole_weight(150, 128, act_order=False),
    "whole, ordered": whole_weight(149, 128, act_order=True),
    "whole, small leaves": whole_weight(100, 32, act_order=False),
}
BLOCKS = [name for name in CASES if name != "nan" and not name.startswith("whole")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kernel")
    torch.save(CASES, directory / "cases.pt")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "TRITON_CACHE_DIR": str(directory),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    script = ROOT / "tests" / "helpers" / "interpret_triton_kernel.py"
    command = [sys.executable, "-W", "error", str(script), "cases.pt", "results.pt"]
    ran = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return torch.load(directory / "results.pt", weights_only=True)


@pytest.mark.parametrize("name", BLOCKS)
def test_solve_block_equals_the_torch_loop(results, name):
    case, got = CASES[name], results[name]
    errors, targets = case["values"].clone(), case["targets"].clone()
    codes, count = torch.empty(errors.shape, dtype=torch.int8), torch.zeros(1, dtype=torch.int32)
    settle_leaf(Block(case["unit_rows"], targets, errors, codes, count))
    assert torch.equal(got["codes"], codes)
    assert torch.equal(got["errors"], errors)
    assert got["num_saturated"] == int(count)


def test_solve_block_cases_reach_what_they_are_for(results):
    assert results["saturated"]["num_saturated"] > 100
    assert results["far"]["codes"].abs().min() == 127
    assert results["far"]["num_saturated"] == 40 * 36
    assert set(results["halves"]["codes"].flatten().tolist()) == {*range(-126, 127, 2)}


def test_solve_block_nan_is_code_0_and_stays_nan_to_the_last_column(results):
    got = results["nan"]
    assert torch.isnan(got["errors"][:12, 7]).all()
    assert not got["codes"][:12, 7].any()
    others = torch.arange(40) != 7
    assert torch.isfinite(got["errors"][:, others]).all()
    assert torch.isfinite(got["errors"][12:, 7]).all()


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("whole")])
def test_solve_with_the_kernel_equals_the_loop(results, name):
    case = CASES[name]
    factor = Factor(case["unit_rows"], case["order"], 0.01, torch.ones(len(case["unit_rows"])))
    expected = solve(case["weight"], case["scale"], factor)
    assert torch.equal(results[name]["codes"], expected.codes)
    assert results[name]["num_saturated"] == expected.num_saturated > 0


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="needs Triton's compiler")
@pytest.mark.parametrize("num_outputs", [3584, 37888])
def test_solve_block_compiles_for_an_h100_without_spilling(tmp_path, monkeypatch, num_outputs):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vacc_deploy.solver import triton_kernel as block_kernel

    config = block_kernel.choose_config(block_kernel.MAX_COLUMNS, num_outputs)
    constants = {
        "unit_columns_stride": 1,
        "num_columns": block_kernel.MAX_COLUMNS,
        "block_columns": config.block_columns,
        "block_outputs": config.block_outputs,
    }
    names = block_kernel._settle_kernel.arg_names
    pointers = dict(zip(names, ["*fp32", "*fp32", "*fp32", "*i8", "*i32"], strict=False))
    signature = {name: pointers.get(name, "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name not in constants and name != "last"
    }
    compiled = triton.compile(
        ASTSource(block_kernel._settle_kernel, signature, constants, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": config.num_warps, "enable_fp_fusion": True},
    )
    ptx = compiled.asm["ptx"]
    assert ".target sm_90" in ptx
    # Both halves of the rounding are there: 1.5 · 2^23 added and taken away.
    assert "0f4B400000" in ptx and "0fCB400000" in ptx
    assert "tf32" not in ptx and "ftz" not in ptx
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run(
        [tool, "-res-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"STACK:(\d+)", usage)[1] == "0"
    assert int(re.search(r"REG:(\d+)", usage)[1]) <= 200


def test_solve_block_refuses_what_it_cannot_do():
    from vacc_deploy.solver.triton_kernel import solve_block

    def attempt(*, columns=4, **changes):
        tensors = {
            "unit_rows": torch.eye(columns),
            "targets": torch.zeros(columns, 3),
            "errors": torch.zeros(columns, 3),
            "codes": torch.zeros(columns, 3, dtype=torch.int8),
            "num_saturated": torch.zeros(1, dtype=torch.int32),
        }
        solve_block(Block(**{**tensors, **changes}))

    with pytest.raises(ValueError, match="1 to 128 columns, got 129"):
        attempt(columns=129)
    with pytest.raises(ValueError, match="do not fit each other"):
        attempt(unit_rows=torch.eye(5))
    with pytest.raises(ValueError, match="float32 with int8 codes"):
        attempt(targets=torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="contiguous"):
        attempt(errors=torch.zeros(3, 4).T)
