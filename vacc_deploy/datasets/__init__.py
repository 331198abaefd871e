"""Published calibration sets: files in, documents out. Nothing is unpacked to disk."""

# Here and not beside their readers, so that the command line starts without those.
KIND_NAMES = ("c4", "ceval", "alpaca", "chat", "text", "traces")


def list_kinds() -> str:
    """Return the kinds of calibration data as a message lists them."""
    *names, last = KIND_NAMES
    return f"{', '.join(names)} or {last}"
