"""Names of files at the edge of their bound."""

from pathlib import Path

from checkpoint_builders import write_json

from vacc_deploy.bounds import FILE_NAME_BYTES
from vacc_deploy.checkpoint.reader import INDEX_NAME, _read_index


def _read_names(tmp_path: Path, over: bool) -> None:
    # Two bytes a letter: characters are not what a file system counts.
    name = "\u00e9" * 90 + "x" * (FILE_NAME_BYTES - 192 + over) + ".safetensors"
    write_json(tmp_path / INDEX_NAME, {"weight_map": {"a": name}})
    assert _read_index(tmp_path) == {"a": name}


EDGES = {"FILE_NAME_BYTES": _read_names}
