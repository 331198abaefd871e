"""The committed files of the official models: ``yaml/`` and ``build_in/``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.errors import OutputError, list_problems
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.catalog import official_models, plain_sizes
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME, needs_vacc_config, vacc_config
from vacc_deploy.outputs.text_file import check_text, replace_text
from vacc_deploy.vamc.compile_file import FILE_HEAD, LARGE_MODEL_PARAMETERS, make_compile_file
from vacc_deploy.vamc.options import DTYPES, CompileOptions
from vacc_deploy.vamc.target import catalog_target


def default_tensor_parallel_size(config: ModelConfig) -> int:
    """Return the size that the committed set uses.

    8 from 30 billion parameters on, as in the vendor's files for QwQ-32B, which has the shape of
    the 32B model; else 4, as in its files for the 7B. Halved until the heads divide evenly.
    """
    size = 8 if config.num_parameters() >= LARGE_MODEL_PARAMETERS else 4
    while size > 1 and size not in plain_sizes(config):
        size //= 2
    return size


def committed_files() -> dict[str, str]:
    """Return the set of ``yaml/``, file name to text: each official model as fp16 and int8."""
    files = {}
    for model in official_models():
        size = default_tensor_parallel_size(model.config)
        short = model.name.lower().replace("deepseek", "ds").replace("-", "_")
        for dtype in DTYPES:
            target = catalog_target(model, dtype)
            made = make_compile_file(target, CompileOptions(dtype, size))
            files[f"hf_{short}_{dtype}.yaml"] = made.text
    return files


def committed_configs() -> dict[str, str]:
    """Return the set of ``build_in/``, relative path to text: the models that need a config."""
    return {
        f"{model.name}/{VACC_CONFIG_NAME}": dump_json(vacc_config(model.config))
        for model in official_models()
        if needs_vacc_config(model.config)
    }


@dataclass(frozen=True)
class WrittenFiles:
    """The files that ``yaml --all`` wrote."""

    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the paths."""
        return {"files": [str(path) for path in self.files]}

    def to_text(self) -> str:
        """Return one path per line."""
        return "\n".join(["Written:", *(f"  {path}" for path in self.files)])


def write_all(output_dir: Path, *, build_in: Path | None = None) -> WrittenFiles:
    """Write the committed set; replaces files of the same names, deletes none.

    Args:
        output_dir: receives the YAML files.
        build_in: receives one folder with ``config_vacc.json`` per model that needs it.

    Raises:
        OutputError: something of such a name was not written by this tool, was edited or is no
            file, or a directory is closed to us; then none is written.
    """
    texts = {output_dir / name: text for name, text in committed_files().items()}
    heads: dict[Path, str | None] = dict.fromkeys(texts, FILE_HEAD)
    if build_in is not None:
        # JSON has no comments for a seal: nothing but its text is a proof.
        texts |= {build_in / name: text for name, text in committed_configs().items()}
    if problems := list(_find_problems(texts, heads)):
        raise OutputError(
            f"Files stand in the way that are not replaced:\n{list_problems(problems)}\nNothing "
            "was written."
        )
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text, overwrite=True, head=heads.get(path))
    return WrittenFiles(tuple(texts))


def _find_problems(texts: dict[Path, str], heads: dict[Path, str | None]) -> Iterator[str]:
    """Yield the error of each file that would be refused."""
    for path, text in texts.items():
        try:
            check_text(path, text, overwrite=True, head=heads.get(path))
        except OutputError as err:
            yield str(err)
