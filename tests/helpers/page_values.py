"""A report and a manifest with one of everything that a page shows."""

import json

REPORT = {
    "calibration": {
        "tokens": 8,
        "sources": [{"kind": "c4", "file": "f", "sha256": "0", "rows": 1}],
    },
    "linears": [
        {"name": "model.layers.0.self_attn.q_proj", "method": "gptq", "error_rtn": 0.2}
        | {"error_gptq": 0.1, "num_saturated": 3, "scale_shrink": 0.01, "num_pinned": 0}
    ],
    "audit": [{"layer": 0, "stage": "q", "tensor": "inputs", "max_abs": 70000.0, "rms": 1.0}],
    "at_risk": ["layer 0"],
}
MANIFEST = {
    "tool": {"name": "vacc-deploy", "version": "0"},
    "libraries": {"torch": "2"},
    "command": "quantize",
    "source": {"path": "../model"},
    "options": {"method": "gptq", "formats": ["vamc"], "seed": 0},
    "files": {"a.json": {"bytes": 3, "sha256": "0" * 64}, "b": {"bytes": 3, "header_sha256": "1"}},
}


def write(directory, report=None, manifest=None):
    for name, values in (("quantize_report.json", report), ("vacc_deploy.json", manifest)):
        if values is not None:
            text = values if isinstance(values, str) else json.dumps(values)
            (directory / name).write_text(text, "utf-8")
