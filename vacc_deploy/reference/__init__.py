"""The model on this CPU: run it, compare it, let it answer."""
