"""The ONNX graphs that ``vamc`` would trace: traced, run and compared here."""
