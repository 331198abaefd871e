"""Outputs that appear whole or not at all: what is written, where, and its manifest."""
