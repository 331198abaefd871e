"""The mathematics of the quantizer: tensors in, tensors out. Pure."""
