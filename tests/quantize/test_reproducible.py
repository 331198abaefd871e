"""The same inputs give the same bytes, whatever the process and its environment are like."""

import hashlib
import os
import subprocess
import sys

from checkpoint_builders import write_checkpoint
from texts import ROOT

# One process for all steps: loading torch takes longest.
STEPS = """
import os, sys
from pathlib import Path
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
os.umask(int(os.environ["UMASK"], 8))
source, out = map(Path, sys.argv[1:])
prepared = prepare(weights=source, output=out / "prepared", link_mode="copy").output_dir
formats = ("vamc", "int8", "gptq", "compressed-tensors")
quantize(prepared, output=out / "rounded", options=QuantizeOptions("rtn", formats=formats))
"""


def hashes(source, out, **environment):
    """Return the SHA-256 of every file but the timing's that a process of its own has written."""
    out.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-c", STEPS, str(source), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        cwd=out.parent,
        check=True,
        capture_output=True,
    )
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "quantize_timing.json"
    }


def test_no_order_of_a_set_no_locale_and_no_umask_reaches_a_file(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    one = hashes(source, tmp_path / "a" / "out", PYTHONHASHSEED="0", TZ="UTC", UMASK="022")
    other = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "UMASK": "077"}
    two = hashes(source, tmp_path / "b" / "out", HOME=str(tmp_path), **other)
    assert len(one) > 20 and one == two
