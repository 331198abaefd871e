"""Turn float weights into per-channel int8: the mathematics, the pipeline, the formats."""
