"""What the benchmark scripts compute from their measurements; none of them measures here."""

import ast
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from ceval_archives import write_archive
from checkpoint_builders import build_config, write_checkpoint
from safetensors.torch import save_file
from texts import ROOT, read_json

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.evaluation.ceval import Choice
from vacc_deploy.evaluation.ceval_prompts import choose_questions
from vacc_deploy.models.parse import parse_config
from vacc_deploy.reference.compare import compare_on_tokens
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.text.tokenizer import Tokenizer

BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))


@pytest.fixture
def script(monkeypatch):
    """Import a script by name, as if it had been started; its siblings' names are free after it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if origin.startswith(str(BENCHMARKS)):
            del sys.modules[name]


def scores(token_kl):
    kl = torch.tensor(token_kl, dtype=torch.float64)
    return NextTokenScores(len(kl), 3.0, 3.1, kl.mean().item(), 0.1, 2.0, 0.5, token_kl=kl)


def test_linked_checkpoint_is_one_that_the_commands_read(script, tmp_path):
    source, link = write_checkpoint(tmp_path / "source"), tmp_path / "cache"
    link.symlink_to(source)
    script("stand_ins").link_checkpoint(link, tmp_path / "linked")
    names = {path.name for path in (tmp_path / "linked").iterdir()}
    assert names >= {path.name for path in source.iterdir()} | {"tokenizer.json"}
    assert (
        Checkpoint.open(tmp_path / "linked").tensors.keys()
        == Checkpoint.open(source).tensors.keys()
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_starts_and_imports_what_exists(script, path):
    main = getattr(script(path.stem), "main", None)
    if hasattr(main, "callback"):  # a command of click
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vacc_deploy"):
            try:
                module = importlib.import_module(node.module)
            except ModuleNotFoundError as err:
                assert err.name == "triton"  # not installed everywhere
                continue
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_settings_become_the_types_that_the_options_declare(script):
    quality = script("quality")
    settings = ("act_order=no", "seed=7", "method=rtn", "num_float_rows=none", "formats=a,b")
    assert quality.parse_settings(settings) == {
        "act_order": False,
        "seed": 7,
        "method": "rtn",
        "num_float_rows": None,
        "formats": ("a", "b"),
    }
    for wrong in ("dumping=1", "seed", "seed=x", "act_order=maybe", "sources=c4"):
        with pytest.raises(quality.click.ClickException, match=f"--set {wrong}: "):
            quality.parse_settings((wrong,))


def test_paired_error_of_the_ratio_is_that_of_its_resamples(script):
    judging = script("judging")
    generator = torch.Generator().manual_seed(1)
    right = torch.rand(400, generator=generator, dtype=torch.float64) + 0.2
    left = 0.7 * right + 0.1 * torch.rand(400, generator=generator, dtype=torch.float64)
    paired = judging.compare_paired(scores(left.tolist()), scores(right.tolist()))
    assert paired.ratio == pytest.approx(left.mean().item() / right.mean().item())
    assert paired.difference == pytest.approx((left - right).mean().item())
    picks = torch.randint(0, 400, (4000, 400), generator=generator)
    resampled = left[picks].mean(1) / right[picks].mean(1)
    assert paired.ratio_standard_error == pytest.approx(resampled.std().item(), rel=0.1)


def test_a_judge_finds_the_scores_of_the_same_weights_again(script, tmp_path):
    judging = script("judging")
    reference = Checkpoint.open(write_checkpoint(tmp_path / "float", scale=3.0))
    deployed = write_checkpoint(tmp_path / "deployed", scale=3.1)
    manifest = {"format_version": 1, "files": {"model.safetensors": {"sha256": "a" * 64}}}
    (deployed / "vacc_deploy.json").write_text(json.dumps(manifest))
    tokens = torch.arange(40).view(2, 20)
    judge = judging.Judge(reference, {"text": tokens}, tmp_path / "kept")
    first = judge.score(deployed, "text")
    expected = compare_on_tokens(reference, Checkpoint.open(deployed), tokens).scores
    assert first == expected and torch.equal(first.token_kl, expected.token_kl)
    # Without the weights they cannot be computed.
    (deployed / "model.safetensors").unlink()
    again = judging.Judge(reference, {"text": tokens}, tmp_path / "kept").score(deployed, "text")
    assert again == first and torch.equal(again.token_kl, first.token_kl)


def test_phases_stand_beside_their_floors_and_files_are_one_part(script):
    quantize = script("quantize")
    phases = {"read": 1.0, "forward": 6.0, "compare": 2.0, "write wait": 0.5}
    floors = {"read + write": 1.0, "forward": 4.0, "solve": 0.5}
    assert quantize.describe_parts(phases, floors) == [
        ("read + write", "1.50", "1.00", "1.50"),
        ("forward", "6.00", "4.00", "1.50"),
        ("compare", "2.00", "–", "–"),
        ("solve", "–", "0.50", "–"),
        ("sum of phases", "9.50", "5.50", "1.73"),
    ]


def test_a_run_that_notes_no_phases_gives_its_total(script):
    quantize, measured = script("quantize"), script("measured")
    process = measured.Measured(20.0, 1 << 30, 30.0)
    sample = quantize.Sample(process, {"peak_memory_bytes": 2 << 30}, 1.0)
    text = quantize.describe_run(sample, {"forward": 9.0}, 1000)
    assert "whole process    20.00  10.00   2.00" in text
    assert "peak memory        2.00 GiB" in text and "sum of phases" not in text


def test_floors_leave_out_down_where_it_is_not_calibrated(script):
    floors = script("floors")
    config = parse_config(build_config(num_layers=3), where="config.json")
    work = floors.Workload(config, 2, 16)
    assert [width for width, _ in work.stages()] == [64, 64, 64, 160]
    fast = floors.Workload(work.config, 2, 16, with_down=False)
    assert [width for width, _ in fast.stages()] == [64, 64, 64]
    measured = floors.measure_floors(work, "cpu")
    assert list(measured) == ["forward", "hessian", "factor", "solve"]
    assert all(seconds > 0 for seconds in measured.values())


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_the_first_layers_are_a_checkpoint_of_the_same_bytes(script, tmp_path, model_type):
    source = write_checkpoint(tmp_path / "all", model_type=model_type, num_layers=3)
    script("stand_ins").keep_layers(source, tmp_path / "first", 2)
    whole, part = Checkpoint.open(source), Checkpoint.open(tmp_path / "first")
    assert part.config.num_hidden_layers == 2
    for name in part.tensors:
        assert torch.equal(part.read(name), whole.read(name)), name


def test_packed_codes_of_a_peer_are_read_as_their_values(script, tmp_path):
    codes = torch.tensor([[-128, -1, 0, 127, 5], [1, 2, 3, 4, -5]], dtype=torch.int16)
    padded = torch.zeros(2, 8, dtype=torch.int16)
    padded[:, :5] = codes + 128
    tensors = {
        "m.weight_packed": padded.to(torch.uint8).view(torch.int32),
        "m.weight_scale": torch.tensor([[0.5], [0.25]], dtype=torch.bfloat16),
        "m.weight_shape": torch.tensor([2, 5]),
        "m.bias": torch.zeros(2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    weights = script("run_llm_compressor").read_weights(tmp_path)
    assert list(weights) == ["m.weight"]
    assert torch.equal(weights["m.weight"], codes * torch.tensor([[0.5], [0.25]]))


def test_a_peers_stock_checkpoint_has_all_its_weights_or_none(script, tmp_path):
    peer_output = script("peer_output")
    source = write_checkpoint(tmp_path / "float", num_layers=1)
    names = [n for n in Checkpoint.open(source).tensors if n.endswith("_proj.weight")]
    weights = {n: torch.ones(Checkpoint.open(source).info(n).shape) for n in names}
    peer_output.write_stock(source, tmp_path / "stock", weights)
    stock = Checkpoint.open(tmp_path / "stock")
    assert all(torch.equal(stock.read(name), weights[name]) for name in names)
    norm = "model.norm.weight"
    assert torch.equal(stock.read(norm), Checkpoint.open(source).read(norm))
    del weights[names[0]]
    with pytest.raises(ValueError, match="6 quantized weights in 1 layers"):
        peer_output.write_stock(source, tmp_path / "again", weights)
    weights["elsewhere.weight"] = torch.ones(1)
    with pytest.raises(ValueError, match="elsewhere"):
        peer_output.write_stock(source, tmp_path / "again", weights)


def test_judging_texts_are_windows_of_the_right_shape(script, tmp_path):
    domains = script("domains")
    tokenizer = Tokenizer.from_dir(demo_model_dir())
    (tmp_path / "sums.txt").write_text("12+34=46\n" * 400)
    script("stand_ins").write_sums(tmp_path / "made.txt", 1000)
    texts = (f"sums={tmp_path / 'sums.txt'}", f"made={tmp_path / 'made.txt'}")
    windows = domains.given_domains(texts, tokenizer, (3, 32), 1000)
    assert [tuple(windows[name].shape) for name in ("sums", "made")] == [(3, 32)] * 2
    with pytest.raises(domains.click.ClickException, match="shorter than one window"):
        domains.given_domains(texts[:1], tokenizer, (1, 100_000), 1000)
    with pytest.raises(domains.click.ClickException, match="expected NAME=FILE"):
        domains.given_domains(("sums",), tokenizer, (1, 8), 1000)


def test_the_halves_of_a_set_share_nothing(script, tmp_path):
    domains = script("domains")
    records = [{"instruction": f"i{n}", "input": "", "output": "o"} for n in range(5)]
    (tmp_path / "alpaca.json").write_text(json.dumps(records))
    parts = (tmp_path / "a.json", tmp_path / "b.json")
    domains.split_records(tmp_path / "alpaca.json", parts)
    halves = [[record["instruction"] for record in read_json(part)] for part in parts]
    assert halves == [["i0", "i2", "i4"], ["i1", "i3"]]


def test_peers_are_asked_for_by_name_and_method(script):
    peers = script("peers")
    asked = peers.parse_peers((f"llm-compressor={sys.executable}", f"torchao:rtn={sys.executable}"))
    assert [contest.folder for contest in asked] == [
        "llm-compressor-gptq",
        "llm-compressor-rtn",
        "torchao-rtn",
    ]
    for wrong in ("other=python3", f"torchao:gptq={sys.executable}", "torchao=/no/python"):
        with pytest.raises(peers.click.ClickException, match="expected NAME"):
            peers.parse_peers((wrong,))


def test_a_prediction_stands_beside_the_run(script):
    plan = {
        "estimated_seconds": 12.0,
        "estimated_parts": {"seconds": {"preparation": 1.0, "layers": 11.0}},
        "estimated_memory_bytes": 3 << 29,
        "estimated_device_memory_bytes": None,
    }
    timing = {"seconds": 10.0, "layer_seconds": [5.0, 3.0], "peak_memory_bytes": 1 << 30}
    assert script("prediction").compare(plan, timing) == [
        ("seconds", "12.00", "10.00", "1.20"),
        ("  layers", "11.00", "8.00", "1.38"),
        ("memory in GiB", "1.50", "1.00", "1.50"),
    ]


def test_a_shaped_checkpoint_opens_and_has_the_sizes_of_its_model(script, tmp_path):
    config = build_config(num_layers=9, vocab_size=300)
    script("stand_ins").write_shaped(tmp_path / "m", config, 2)
    opened = Checkpoint.open(tmp_path / "m").config
    assert (opened.num_hidden_layers, opened.vocab_size) == (2, 4096)
    assert opened.layer_tensors(0) == parse_config(config, where="c").layer_tensors(0)


def test_presets_scale_the_layers_alone(script):
    presets = script("presets")
    plan = {"estimated_parts": {"seconds": {"layers": 4.0, "preparation": 3.0}}}
    assert presets.scaled_seconds(plan, 28) == 3 + 14 * 4
    assert presets.scaled_seconds({"estimated_parts": {"seconds": None}}, 28) is None


def test_requantizing_finds_the_codes_per_channel_and_loses_them_otherwise(script):
    requantize = script("requantize")
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (64, 256), generator=generator).to(torch.int8)
    codes[:, 7] = 127
    stored = (codes.float() * torch.linspace(1e-3, 1e-2, 64)[:, None].half()).half()
    for dtype in (torch.float16, torch.float32):
        assert torch.equal(requantize.vendor_codes(stored, dtype), codes)
    assert (requantize.vendor_codes(stored, torch.bfloat16) != codes).any()
    kept = requantize.WAYS["per channel, ±127 (published)"](stored.float())
    assert torch.allclose(kept, stored.float(), rtol=2e-3)
    # Groups have finer grids of their own: near the values, but not on the row's grid.
    grouped = requantize.WAYS["groups of 128, asymmetric"](stored.float())
    step = stored.float().abs().amax(1, keepdim=True) / 127
    assert ((grouped - stored).abs() <= 0.51 * step * 255 / 254).all()


# ---- C-Eval beside the harness -----------------------------------------------------------------


def test_tasks_for_the_harness_hold_every_question_and_its_samples_are_read_back(script, tmp_path):
    bench = script("ceval")
    archive = write_archive(tmp_path / "ceval-exam.zip", subjects=("law", "logic"))
    questions, examples = choose_questions(archive, (), 2)
    names = bench.write_tasks(tmp_path, questions, examples)
    assert names == ["vacc_local_ceval_law", "vacc_local_ceval_logic"]
    task = yaml.safe_load((tmp_path / "law.yaml").read_text("utf-8"))
    files = task["dataset_kwargs"]["data_files"]
    lines = {split: Path(path).read_text("utf-8").splitlines() for split, path in files.items()}
    assert (len(lines["val"]), len(lines["dev"])) == (2, 5)
    sample = {"doc_id": 1, "acc": 1.0, "arguments": {"gen_args_0": {"arg_0": "prompt"}}}
    log = tmp_path / "out" / "samples_vacc_local_ceval_law_2026-11-28T13-49.jsonl"
    log.parent.mkdir()
    log.write_text(json.dumps(sample) + "\n", "utf-8")
    assert bench.read_samples(tmp_path / "out") == {("law", 1): {"prompt": "prompt", "right": True}}


def test_answers_are_compared_with_those_of_the_harness_one_by_one(script):
    choices = [Choice("law", 0, 0, 1), Choice("law", 1, 1, 1), Choice("logic", 2, 3, 2)]
    result = SimpleNamespace(choices=choices)
    keys = [("law", 0), ("law", 1), ("logic", 0)]
    samples = {key: {"prompt": "p", "right": True} for key in keys}
    counts = script("ceval").compare(result, ["p", "p", "q"], samples, "float")
    assert counts == {
        "questions": 3,
        "right": 2,
        "right_harness": 3,
        "judged_otherwise": 1,
        "other_prompts": 1,
    }


def test_questions_for_the_harness_hide_the_right_ending_among_others(script):
    texts = [" ".join(f"{word}{i}" for i in range(200)) for word in "abcdef"]
    questions = script("harness").make_questions([*texts, "short"], 5)
    assert len(questions) == 5 and {len(set(q["choices"])) for q in questions} == {4}
    for number, question in enumerate(questions):
        words = texts[number].split()
        assert question["query"].split() == words[:45]
        assert question["choices"][question["gold"]].split() == words[45:65]
