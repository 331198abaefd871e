"""Load a directory with GPTQModel, through transformers, on a CPU."""

import torch
from consumer_io import answer, greedy, read_request

NAME, OTHERS = "gptqmodel", ("optimum", "transformers", "torch")


def main() -> None:
    """Answer the request."""
    request = read_request()
    try:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            request["directory"], dtype=torch.float32, device_map="cpu", trust_remote_code=False
        ).eval()
        tokens = greedy(model, request["prompts"], request["num_tokens"])
    except Exception as err:  # whatever a library raises is its refusal
        answer(NAME, OTHERS, refused=f"{type(err).__name__}: {err}")
    else:
        answer(NAME, OTHERS, tokens=tokens)


if __name__ == "__main__":
    main()
