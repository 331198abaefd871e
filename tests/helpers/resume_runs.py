"""Runs of ``quantize`` that end early: killed at a point by themselves, or stopped after a layer.

To be killed at a point, a run is forked and one function of the package is replaced in the child.
"""

import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import pytest
import texts
from doubles import StopAfter

from vacc_deploy.outputs import output as output_module
from vacc_deploy.outputs import text_file
from vacc_deploy.quantize import finish, records, run, shards
from vacc_deploy.quantize import rows as rows_module
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.records import RUN_NAME, record_name
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize

NUM_LAYERS, NUM_SHARDS = 3, 5
RTN = QuantizeOptions("rtn")


def contents(directory):
    """Return every file of an output with its bytes, the times of the run left out."""
    return texts.contents(directory, without=(TIMING_NAME,))


def names_around(output):
    """Return the names beside an output that come of it, its own included."""
    return sorted(path.name for path in output.parent.iterdir() if output.name in path.name)


def shard_file(number):
    """Return the name of a shard's file in a directory of one format."""
    return f"model-{number + 1:05d}-of-{NUM_SHARDS:05d}.safetensors"


def interrupt(source, output, options, *, layers=1):
    """Interrupt a run after some layers."""
    stop = StopAfter(layers)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, options=options, output=output, progress=stop, kept=stop.kept)
    assert (stop.kept.finished, stop.kept.total) == (layers, NUM_LAYERS)


def change_json(path, change):
    """Let ``change`` alter what a JSON file holds."""
    values = texts.read_json(path)
    change(values)
    path.write_text(json.dumps(values), "utf-8")


def kill():
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(arm, source, **arguments):
    """Run ``quantize`` in a process of its own that ``arm`` has set up to kill itself."""

    def child():
        arm()
        quantize(source, **arguments)

    with warnings.catch_warnings():
        # Newer interpreters warn of forking beside the threads of a test runner.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def at_call(module, name, when=lambda *arguments: True, *, is_after=False):
    """Return what kills before, or after, the first call of ``module.name`` that ``when`` takes."""

    def arm():
        plain = getattr(module, name)

        def replaced(*arguments, **options):
            if when(*arguments) and not is_after:
                kill()
            value = plain(*arguments, **options)
            if when(*arguments):
                kill()
            return value

        setattr(module, name, replaced)

    return arm


def half_shard():
    """Leave half of layer 1's shard, then kill."""
    plain = shards.write_shard

    def half(path, tensors):
        written = plain(path, tensors)
        if path.name == shard_file(2):
            os.truncate(path, written.num_bytes // 2)
            kill()
        return written

    shards.write_shard = half


def half_record():
    """Leave half of layer 1's record beside where it belongs, then kill."""
    plain = text_file.write_text

    def half(path, text):
        if record_name(2) in path.name:
            path.write_text(text[: len(text) // 2], "utf-8")
            kill()
        return plain(path, text)

    text_file.write_text = half


def between_the_renames():
    """Kill when the older output has another name and the new one has none yet."""
    plain = Path.rename

    def rename(self, target):
        if self.name == "out.partial":
            kill()
        return plain(self, target)

    Path.rename = rename


def while_the_older_one_is_removed():
    """Kill when one file of the older output is removed."""
    plain = Path.unlink

    def unlink(self, missing_ok=False):
        plain(self, missing_ok=missing_ok)
        if ".replaced-" in str(self):
            kill()

    Path.unlink = unlink


def is_record_of(shard):
    """Return whether the record of ``shard`` is being written."""
    return lambda path, _: path.name == record_name(shard)


def after_record(shard):
    """Return what kills once a shard is recorded."""
    return at_call(records, "write_record", is_record_of(shard), is_after=True)


def before_rename_to(name):
    """Return what kills when a file has been written aside."""
    return at_call(output_module.os, "replace", lambda _, target: Path(target).name == name)


POINTS = {
    "before anything": at_call(rows_module, "read_calibration_rows"),
    "directory made, not yet claimed": at_call(output_module.os, "open"),
    "claimed, no file of the run": at_call(run, "begin_run"),
    "file of the run written, not yet in place": before_rename_to(RUN_NAME),
    "file of the run in place": at_call(shards, "write_shard"),
    "half of a shard": half_shard,
    "between shard and record": at_call(records, "write_record", is_record_of(2)),
    "half of a record written aside": half_record,
    "record written, not yet in place": before_rename_to(record_name(2)),
    "between two layers": after_record(2),
    "last layer": after_record(NUM_LAYERS),
    "all shards, no index": at_call(finish, "write_index"),
    "before the manifest": at_call(finish, "write_manifest"),
    "before the rename": at_call(output_module, "_put_in_place"),
    "after the rename": at_call(output_module, "remove_leftovers"),
}
# remove_leftovers is called before the run too, when no older output has been renamed.
AFTER_THE_RENAMES = at_call(
    output_module,
    "remove_leftovers",
    lambda target, *_: any(target.parent.glob(f".{target.name}.replaced-*")),
)
REPLACING = {
    "before the renames": at_call(output_module, "_put_in_place"),
    "between the renames": between_the_renames,
    "after the renames": AFTER_THE_RENAMES,
    "the older one half removed": while_the_older_one_is_removed,
}
