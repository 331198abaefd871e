"""What the user of ``prepare`` asks for: which model, and where its weights are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from vacc_deploy.checkpoint.caches import default_output
from vacc_deploy.checkpoint.manifest import read_manifest
from vacc_deploy.errors import CheckpointError, UnsupportedModelError, UsageError
from vacc_deploy.lookup.hub import Source, fetch
from vacc_deploy.lookup.locate import find_repository, locate
from vacc_deploy.models.catalog import CatalogModel, find_model, known_model
from vacc_deploy.outputs.output import try_output
from vacc_deploy.permissions import is_there
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.results import command


def read_request(
    source: Path | str | None,
    model: str | None,
    weights: Path | str | None,
    again: Callable[[Path | str], str],
) -> tuple[Path | str | None, CatalogModel | None]:
    """Return what is to be located, None for the hub's model, and the known model it has to be."""
    if source is not None and weights is not None:
        name = f" --model {source}" if known_model(str(source)) else ""
        raise UsageError(
            f"SOURCE {source} and --weights {weights} both say where the weights are. Give one of "
            f"them:\n  {again(weights)}{name}"
        )
    given = source if source is not None else weights
    if model is None:
        if given is None:
            raise UsageError(
                "Give what to prepare: a checkpoint directory, the id of a repository, or a model "
                "name (see vacc-deploy models). For example:\n  vacc-deploy prepare Distill-Qwen-7B"
            )
        return given, None
    known = known_model(model)
    if known is None:
        if given is None and (is_there(model) or find_repository(model)):
            return model, None
        raise _unknown_model(model, given, again)
    other = known_model(str(given)) if given is not None and not is_there(given) else None
    if other not in (None, known):
        name = "SOURCE" if source is not None else "--weights"
        raise UsageError(f"{name} {given} and --model {model} are two models. Give one of them.")
    return given, known


def _unknown_model(
    model: str, given: Path | str | None, again: Callable[[Path | str], str]
) -> UsageError:
    try:
        find_model(model)
    except UnsupportedModelError as err:
        text = str(err)
    how = f", without --model:\n  {again(given if given is not None else 'DIR')}"
    return UsageError(f"--model: {text.rstrip('.')}{how}")


def find_source(
    given: Path | str | None,
    known: CatalogModel | None,
    output: Path | None,
    *,
    overwrite: bool,
    dry_run: bool,
    again: Callable[[Path | str], str],
    downloading: Callable[[], AbstractContextManager[None]] = nullcontext,
    progress: Progress = SILENT,
) -> Source:
    """Return the weights, downloaded if need be; see that they are not prepared already."""

    def check(name: str) -> None:
        # Before a download of gigabytes, see that the result can be written.
        place = output or default_output(Path(f"{name}-vacc"))
        try_output(place, overwrite=overwrite, source=None, progress=progress)

    def command_line(place: Path | str) -> str:
        return f"{again(place)} --model {known.aliases[0]}" if known else again(place)

    if known is not None and given is None:
        return fetch(
            known.repository,
            again=command_line,
            may_download=not dry_run,
            before_download=check,
            downloading=downloading,
        )
    found = locate(
        given or "",
        again=command_line,
        needs_float=True,
        may_download=not dry_run,
        before_download=check,
        downloading=downloading,
    )
    directory = found.directory
    # With an --output the user knows that it is another directory.
    if output is None and (read_manifest(directory) or {}).get("command") == "prepare":
        raise CheckpointError(
            f"{directory} is prepared already. Next:\n  {command('quantize', directory)}\n"
            "To prepare it again into another directory, give --output."
        )
    return found
