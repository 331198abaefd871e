"""Load a directory with GPTQModel, through transformers, on a CPU."""

import torch
from consumer_io import continue_all, respond
from transformers import AutoModelForCausalLM


def load(directory):
    """Return the model; transformers calls GPTQModel for the linears."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, device_map="cpu", trust_remote_code=False
    ).eval()


if __name__ == "__main__":
    respond("gptqmodel", load, continue_all, ("optimum", "transformers", "torch"))
