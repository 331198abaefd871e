"""The same inputs give the same bytes, whatever the process and its environment are like."""

import hashlib
import os
import subprocess
import sys

from checkpoint_builders import write_checkpoint
from texts import ROOT
from tokenizer_builders import tokenizer_config, write_tokenizer

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
from vacc_deploy.formats.layouts import FORMATS as formats
quantize(prepared, output=out / "rounded", options=QuantizeOptions("rtn", formats=formats))
"""

CALIBRATED = """
import sys
from pathlib import Path
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
source, out = map(Path, sys.argv[1:])
chats = (CalibrationSource("chat", source / "chats.jsonl"),)
options = QuantizeOptions("gptq", sources=chats, num_samples=20, sequence_length=16)
quantize(source, output=out / "calibrated", options=options)
"""
# All that a template can write of things whose text might be an address or a random order.
TELLING = (
    "{% block b %}{{ self }}{{ self.b is defined }}{% endblock %}{{ namespace(a=messages[0]) }}"
    "{% macro f() %}{{ caller }}{{ varargs }}{% endmacro %}{{ f }}{% call f(1) %}{% endcall %}"
    "{% for m in messages %}{{ loop }}{{ m.keys() }}{{ m.items() }}{{ m.nothing }}"
    "{% for k in m.keys() | unique %}{{ k }}{% endfor %}{% endfor %}{{ range(3) }}{{ dict }}"
)


def hashes(source, out, steps=STEPS, **environment):
    """Return the SHA-256 of every file but the timing's that a process of its own has written."""
    out.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-c", steps, str(source), str(out)],
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
    source = write_checkpoint(tmp_path / "model", hidden_size=128, intermediate_size=128)
    one = hashes(source, tmp_path / "a" / "out", PYTHONHASHSEED="0", TZ="UTC", UMASK="022")
    other = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "UMASK": "077"}
    two = hashes(source, tmp_path / "b" / "out", HOME=str(tmp_path), **other)
    assert len(one) > 20 and one == two


def test_no_address_and_no_order_of_a_template_reaches_a_calibrated_file(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    write_tokenizer(source, config=tokenizer_config(chat_template=TELLING))
    lines = (f'{{"instruction": "question {n}", "output": "answer {n}"}}\n' for n in range(40))
    (source / "chats.jsonl").write_text("".join(lines), "utf-8")
    one, two = (
        hashes(source, tmp_path / seed / "out", CALIBRATED, PYTHONHASHSEED=seed)
        for seed in ("0", "4711")
    )
    assert len(one) > 5 and one == two
