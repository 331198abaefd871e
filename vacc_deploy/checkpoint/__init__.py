"""Checkpoint directories: checked reading, deterministic writing, atomic output."""
