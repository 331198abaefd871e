"""Published calibration sets: files in, documents out. Nothing is unpacked to disk."""
