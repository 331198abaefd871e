"""Read JSON files within bounds, and write them in a stable form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.errors import (
    CheckpointError,
)


def read_json(path: Path, *, limit_bytes: int) -> Any:
    """Parse a small JSON file of at most ``limit_bytes``.

    Raises:
        CheckpointError: the file is missing, too large, not UTF-8 or not JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}.") from err
    if len(data) > limit_bytes:
        raise CheckpointError(
            f"{path} holds more than {limit_bytes:,} bytes: this is no file of that kind."
        )
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path} is not valid JSON: {err}. Download it again.") from err


def dump_report(values: Mapping[str, Any]) -> str:
    """Return a report as stable, readable JSON."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def dump_config(values: Mapping[str, Any]) -> str:
    """Return ``values`` as the text of a configuration file."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
