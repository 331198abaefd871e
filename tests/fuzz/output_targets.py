"""Targets that read what a run has left: manifests, records, reports, locks, answers, YAML."""

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from files import clear, place, write
from mutations import SEPARATOR
from sandbox import FindingError

from vacc_deploy.calibration.answer_cache import AnswerCache
from vacc_deploy.check.compile_file import check_compile_file
from vacc_deploy.checkpoint.caches import hub_repository, snapshot_name
from vacc_deploy.checkpoint.manifest import model_name, name_source, read_manifest
from vacc_deploy.errors import VaccDeployError
from vacc_deploy.lookup.locate import find_repository
from vacc_deploy.lookup.transport import explain_failure
from vacc_deploy.models.catalog import known_model, near_names
from vacc_deploy.outputs.damages import find_damages
from vacc_deploy.outputs.lock import describe_running
from vacc_deploy.outputs.proof import prove
from vacc_deploy.outputs.seal import seal_json
from vacc_deploy.progress import SILENT
from vacc_deploy.vamc.cards import CARDS
from vacc_deploy.vamc.compile_file import load_compile_file
from vacc_deploy.vamc.repair import fix_compile_file
from vacc_deploy.vamc.yaml_text import dump_yaml, load_yaml, parse_yaml


def manifest(data: bytes, directory: Path) -> None:
    """A manifest beside a small file, and in a directory below."""
    (directory / "inner").mkdir(exist_ok=True)
    write(directory / "notes.txt", b"Some text.\n")
    parts = [_seal(part) for part in data.split(SEPARATOR, 1)]
    place(SEPARATOR.join(parts), directory, "vacc_deploy.json", "inner/vacc_deploy.json")
    states = prove(directory).states
    if (
        directory / "notes.txt" in states
        and sha256(b"Some text.\n").hexdigest().encode() not in data
    ):
        raise FindingError("differs", "a file is proven by a manifest without its hash")
    read_manifest(directory)
    name_source(directory)
    if "/" in (name := model_name(directory)) or "\0" in name:
        raise FindingError("differs", f"the model's name is {name!r}")
    find_damages(directory)


def _seal(data: bytes) -> bytes:
    """Return a manifest with a sound seal where it has one: behind it the rest is believed."""
    with suppress(ValueError, RecursionError, VaccDeployError):
        values = json.loads(data)
        if isinstance(values, dict) and values.pop("seal", None) == "right":
            return seal_json(values).encode("utf-8", "backslashreplace")
    return data


def compile_yaml(data: bytes, directory: Path) -> None:
    """A compile file: checked, mended once, and what is read and written again is the same."""
    path = directory / "a.yaml"
    write(path, data)
    values = load_yaml(path)
    with suppress(VaccDeployError):
        load_compile_file(path)
    check_compile_file(path, CARDS["VA16"])
    with suppress(VaccDeployError):
        mended, applied = fix_compile_file(path)
        write(path, mended.encode("utf-8", "backslashreplace"))
        if applied and fix_compile_file(path)[1]:
            raise FindingError("unsettled", f"{applied!r:.200} is not all that there was to mend")
    again = parse_yaml(dump_yaml(values), where="what was written")
    if repr(again) != repr(values):
        raise FindingError("differs", f"{values!r:.200} is read again as {again!r:.200}")


def lock_file(data: bytes, directory: Path) -> None:
    """A lock file that another host, or nobody, has written."""
    (directory / "marker").touch()
    write(directory / ".vacc-deploy-lock-1", data)
    describe_running(directory, directory / "marker")


def answers(data: bytes, directory: Path) -> None:
    """A file of saved answers; the seal is set right where the target finds its place."""
    cache = AnswerCache(directory, {"a": 1}, vocab_size=100, max_tokens=8)
    prompts = [[1, 2], [3]]
    with suppress(ValueError, TypeError, RecursionError):
        record = json.loads(data)
        if isinstance(record, dict) and record.get("sha256") == "right":
            record["sha256"] = cache._seal(prompts, record.get("answers"))
            data = json.dumps(record).encode()
    write(cache.path_of(prompts), data)
    found = cache.get(prompts)
    ids = [token for answer in found or () for token in answer]
    if found is not None and (len(found) != 2 or not all(0 <= token < 100 for token in ids)):
        raise FindingError("differs", f"the answers {found!r:.200}")


def repository(data: bytes, directory: Path) -> None:
    """What a user gives in place of a directory, and what a hub answers."""
    text = data.decode("utf-8", "surrogateescape").replace("\0", "")
    for line in text.split("\n")[:20]:
        find_repository(line)
        known_model(line)
        near_names(line, cutoff=0.8)
        hub_repository(line)
        snapshot_name(directory / line[:200].replace("/", "_"))
        explain_failure(OSError(line), "https://example.org")
        cause = RuntimeError(line)
        cause.__cause__ = ValueError(line[::-1])
        explain_failure(cause, line)


def run_records(data: bytes, directory: Path) -> None:
    """The file and a record of an interrupted run, and how ``--resume`` takes them."""
    from vacc_deploy.quantize.records import Run
    from vacc_deploy.quantize.resume import begin_run
    from vacc_deploy.quantize.standing import Foreign, continue_run, find_obstacle, look_at

    clear(directory)
    partial = directory / "out.partial"
    partial.mkdir()
    write(partial / "model-00001-of-00003.safetensors", b"\x02\0\0\0\0\0\0\0{}")
    names = (
        ".vacc-deploy-run.json",
        ".vacc-deploy-shard-00001.json",
        ".vacc-deploy-shard-00002.json",
    )
    place(data, partial, *names)
    standing = look_at(directory / "out", ("int8",))
    find_obstacle(standing, resume=True, overwrite=False)
    if isinstance(standing, Foreign):
        if len(standing.reason) > 2000:
            raise FindingError("message", f"{len(standing.reason)} characters")
    elif isinstance(standing, Run):
        continue_run(standing, {"options": {"method": "rtn"}}, 1)
        begin_run(standing, {"model.layers.0.mlp.up_proj": (1, 2)}, SILENT)


def finished_run(data: bytes, directory: Path) -> None:
    """Report and timing of a finished output, and how ``--resume`` takes them."""
    from vacc_deploy.quantize.result import QuantizeResult
    from vacc_deploy.quantize.standing import Finished, look_at, take_finished

    clear(directory)
    output = directory / "out"
    output.mkdir()
    place(data, output, "quantize_report.json", "quantize_timing.json", "vacc_deploy.json")
    standing = look_at(output, ("int8",))
    if isinstance(standing, Finished):
        planned = QuantizeResult("a", output, "rtn", 1, 1, formats=("int8",))
        result = take_finished(planned, standing, standing.identity, SILENT)
        result.to_dict()
        result.to_text()
