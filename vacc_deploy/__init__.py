"""Quantize and deploy DeepSeek-R1-Distill models on Vastai VACC cards."""

__version__ = "0.1.0"
