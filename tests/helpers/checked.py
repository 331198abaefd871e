"""Prepared and quantized directories to damage, and what a check finds in them."""

import json
import math
import struct

from checkpoint_builders import write_checkpoint

from vacc_deploy.check.directory import check_directory
from vacc_deploy.prepare import prepare
from vacc_deploy.problems.problem import NOTE


def make_prepared(folder, **more):
    source = write_checkpoint(folder / "source", **more)
    return prepare(weights=source, output=folder / "prepared", link_mode="copy").output_dir


def change(path, **values):
    """Change keys of a JSON file; ``...`` takes a key out."""
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in changed.items() if v is not ...}))


def found(directory, **options):
    """Return the problems of a directory by code, its changed files left out."""
    problems = check_directory(directory, **options).problems
    by_code = {}
    for problem in problems:
        by_code.setdefault(problem.rule.code, []).append(problem)
    by_code.pop("VD111", None)  # whatever a test changes differs from the manifest
    return by_code


def above_notes(directory, **options):
    problems = check_directory(directory, **options).problems
    return [f"{p.rule.code} {p}" for p in problems if p.rule.severity != NOTE]


def read_span(path, name):
    """Return the header of a safetensors file, and where a tensor's bytes begin and end."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    start, stop = (8 + length + offset for offset in header[name]["data_offsets"])
    assert stop - start >= math.prod(header[name]["shape"])
    return start, stop


def poke(path, name, offset, data):
    """Write bytes into a tensor, ``offset`` bytes from its begin."""
    start, stop = read_span(path, name)
    assert start + offset + len(data) <= stop
    with path.open("r+b") as file:
        file.seek(start + offset)
        file.write(data)


def holder(directory, name):
    """Return the file that holds a tensor."""
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        if name in json.loads(data[8 : 8 + length]):
            return path
    raise AssertionError(name)
