"""Valid files that a run has left, and names of models."""

import hashlib
from pathlib import Path

from seed_forms import dump, join

from vacc_deploy.quantize.maxima import ranges_of
from vacc_deploy.reference.ranges import audit_values

PACKAGE = Path(__file__).parents[2]


def run_record(shard: int) -> dict:
    record = {"name": f"model.layers.{max(shard, 1) - 1}.mlp.up_proj", "method": "gptq"}
    record |= {"error_gptq": 0.1, "scale_shrink": 0.0, "num_pinned": 1}
    record |= {"error_rtn": 0.2, "dampening_frac": 0.01, "num_saturated": 0, "correction": 1.0}
    empty = b"\x02\0\0\0\0\0\0\0{}"
    file = [len(empty), hashlib.sha256(empty).hexdigest()]
    name = f"model-{shard + 1:05d}-of-00003.safetensors"
    stated = {"shard": shard, "seconds": 1.5, "files": {name: file}}
    stated |= {"records": [record] if shard else []}
    stated |= {"scales": {record["name"]: "ADw="} if shard else {}}
    stated |= {"linear_seconds": {record["name"]: 0.5}}
    tensors = ("qkv input", "o input", "o residual", "gate_up input", "down input", "down residual")
    return stated | {"maxima": dict.fromkeys(tensors, 2.5) if shard else {}}


def seeds() -> dict[str, list[bytes]]:
    text = b"Some text.\n"
    entry = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest = {
        "format_version": 1,
        "command": "quantize",
        "model": "a-b",
        "files": {"notes.txt": entry},
    }
    manifest |= {"source": {"path": "../a"}, "options": {"formats": ["vamc"]}, "versions": {}}
    sealed = manifest | {"tool": {"name": "vacc-deploy", "version": "0"}, "seal": "right"}
    outer = manifest | {"files": {"notes.txt": entry, "inner/vacc_deploy.json": {"bytes": 2}}}
    run = {"version": 4, "identity": {"options": {"method": "rtn"}}, "num_layers": 1}
    run |= {"overwrite": False, "resumes": 0}
    report = {"format_version": 1, "linears": run_record(1)["records"], "warnings": ["a"]}
    report |= {"options": {"formats": ["int8"]}}
    report |= audit_values(ranges_of([run_record(1)["maxima"]]))
    timing = {"identity": {"a": 1}, "seconds": 1.0}
    owner = {"host": "elsewhere", "space": "a", "pid": 4711, "start": "12"}
    compile_file = (PACKAGE / "yaml/hf_ds_r1_distill_qwen_7b_int8.yaml").read_bytes()
    names = (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B\nDistill-Qwen-7B\nowner/name\nmodels--a--b\n./a\n"
    )
    failures = (
        "401 Client Error: Unauthorized\n[SSL: CERTIFICATE_VERIFY_FAILED]\n404 Not Found\n"
        "No space left on device\n"
    )
    plain = b"a: [1, 2.5, null, true, ~, 0x1F, 2020-01-01]\n'b c': \"x\\n\"\n"
    return {
        "manifest": [join(dump(sealed | outer), dump(sealed)), dump(manifest)],
        "compile_yaml": [compile_file, plain],
        "lock_file": [dump(owner), b"{}"],
        "answers": [dump({"answers": [[1, 2, 3], []], "sha256": "right"})],
        "repository": [names.encode(), failures.encode()],
        "run_records": [join(dump(run), dump(run_record(0)), dump(run_record(1)))],
        "finished_run": [join(dump(report), dump(timing), dump(manifest | {"files": {}}))],
    }  # fmt: skip
