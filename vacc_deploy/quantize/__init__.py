"""The streaming run: layer by layer, from a float checkpoint to a directory of int8 weights."""
