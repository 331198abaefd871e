"""Every rule that a directory or a compile file can break, each with a stable code."""
