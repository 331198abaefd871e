"""Load a directory with stock transformers and compressed-tensors, in float32."""

import torch
from consumer_io import continue_all, respond
from transformers import AutoModelForCausalLM


def load(directory):
    """Return the model."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=False
    ).eval()


if __name__ == "__main__":
    respond("transformers", load, continue_all, ("compressed-tensors", "torch"))
