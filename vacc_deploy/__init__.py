"""Quantize and deploy DeepSeek-R1 distills (Qwen, Llama) on Vastai VACC cards."""

__version__ = "0.1.0"
