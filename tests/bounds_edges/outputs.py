"""A text file of ours at the edge of its bound."""

from pathlib import Path

from vacc_deploy.bounds import SEALED_TEXT_BYTES
from vacc_deploy.outputs.seal import seal_text
from vacc_deploy.outputs.text_file import replace_text


def _replace_large(tmp_path: Path, over: bool) -> None:
    path, seal_bytes = tmp_path / "a.yaml", len(seal_text(""))
    path.write_text(seal_text("#" * (SEALED_TEXT_BYTES - seal_bytes + over)), "utf-8")
    replace_text(path, "# new", overwrite=True, head="#")


EDGES = {"SEALED_TEXT_BYTES": _replace_large}
