"""Run the CUDA kernel in Triton's interpreter: read cases, write what it makes of them.

    TRITON_INTERPRET=1 python interpret_triton_kernel.py CASES RESULTS

A process of its own: Triton decides at its import whether it interprets.
"""

import sys

import torch

from vacc_deploy.solver.block import Block, BlockSolver
from vacc_deploy.solver.gptq import Factor, solve
from vacc_deploy.solver.triton_kernel import LaunchConfig, solve_block


def solve_one(case):
    """Return the errors, codes and count of one block."""
    errors = case["values"].clone()
    codes = torch.full(errors.shape, 99, dtype=torch.int8)
    num_saturated = torch.zeros(1, dtype=torch.int32)
    config = LaunchConfig(*case["config"]) if "config" in case else None
    block = Block(case["unit_rows"], case["targets"], errors, codes, num_saturated)
    solve_block(block, config=config)
    return {"errors": errors, "codes": codes, "num_saturated": int(num_saturated)}


def solve_whole(case):
    """Return the codes and count of a weight, with the kernel in the place of the loop."""
    solution = solve(
        case["weight"],
        case["scale"],
        Factor(case["unit_rows"], case["order"], 0.01, torch.ones(len(case["unit_rows"]))),
        block_solver=BlockSolver(case["leaf_columns"], solve_block, is_aligned=True),
    )
    return {"codes": solution.codes, "num_saturated": solution.num_saturated}


def main():
    """Work through the cases."""
    cases = torch.load(sys.argv[1], weights_only=True)
    results = {
        name: (solve_whole if "weight" in case else solve_one)(case) for name, case in cases.items()
    }
    torch.save(results, sys.argv[2])


main()
