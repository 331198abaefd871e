"""``--resume`` of a run with other inputs, options or versions."""

import shutil
from dataclasses import replace

import pytest
import texts
from checkpoint_builders import write_checkpoint
from doubles import StopAfter
from resume_runs import RTN, contents, interrupt

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import OutputError, UsageError
from vacc_deploy.outputs.seal import seal_json
from vacc_deploy.progress import KeptLayers
from vacc_deploy.quantize import identity
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize

WIDE = {"hidden_size": 128, "intermediate_size": 128}


def change_option(context):
    context["options"] = replace(context["options"], seed=7, act_order=False)
    return ["--act-order: true then, false now", "--seed: 0 then, 7 now"]


def change_weights(context):
    path = context["source"] / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return ["weights model.safetensors: "]


def change_side_file(context):
    path = context["source"] / "generation_config.json"
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")
    return ["file generation_config.json: "]


def change_text(context):
    path = context["text"]
    path.write_text(f"other {path.read_text('utf-8')}", "utf-8")
    return ["calibration file words.txt: "]  # and nothing of the tokens, which only follow


def change_threads(context):
    context["monkeypatch"].setattr(identity.torch, "get_num_threads", lambda: 77)
    return ["torch threads: 1 then, 77 now (set OMP_NUM_THREADS=1)"]


def change_processor(context):
    context["monkeypatch"].setattr(identity, "processor_name", lambda: "abacus")
    return ["processor: "]


def change_versions(context):
    plain = identity.library_versions()
    changed = {**plain, "torch": "9.9"}
    context["monkeypatch"].setattr(identity, "library_versions", lambda: changed)
    context["monkeypatch"].setattr(identity, "__version__", "9.0")
    return [f"library torch: {plain['torch']} then, 9.9 now", "vacc-deploy: "]


CHANGES = (
    *(change_option, change_weights, change_side_file, change_text, change_threads),
    *(change_processor, change_versions),
)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_resume_of_another_run_is_refused_by_name(tmp_path, words, monkeypatch, change, finished):
    text = tmp_path / "words.txt"
    shutil.copy(words, text)
    source = write_checkpoint(tmp_path / "model", num_layers=2)
    options = QuantizeOptions("gptq", (CalibrationSource("text", text),), 8, 32)
    if finished:
        quantize(source, options=options)
    else:
        stop = StopAfter(1)
        with pytest.raises(KeyboardInterrupt):
            quantize(source, options=options, progress=stop, kept=stop.kept)
    context = {"options": options, "source": source, "text": text, "monkeypatch": monkeypatch}
    lines = change(context)
    kept = tmp_path / ("model-int8" if finished else "model-int8.partial")
    before = contents(kept)
    layers = KeptLayers()
    for dry_run in (True, False):
        with pytest.raises(OutputError) as caught:
            quantize(source, options=context["options"], resume=True, kept=layers, dry_run=dry_run)
        first, *found, last = str(caught.value).splitlines()
        assert first == (
            f"{kept} exists and was made with other inputs, options or versions:"
            if finished
            else f"{kept} was begun with other inputs, options or versions:"
        )
        assert len(found) == len(lines)
        for line, start in zip(found, lines, strict=True):
            assert line.startswith(f"  - {start}") and " then, " in line and " now" in line
        assert "--overwrite" in last
        assert contents(kept) == before and not layers.has_begun


def test_resume_and_overwrite_together_are_refused(model, output, gptq):
    interrupt(model, output, gptq)
    before = contents(output.with_name("out.partial"))
    message = (
        "--resume goes on with what an earlier run has finished, --overwrite begins again. Give "
        "one of them."
    )
    for dry_run in (False, True):
        with pytest.raises(UsageError) as caught:
            quantize(
                model, options=gptq, output=output, resume=True, overwrite=True, dry_run=dry_run
            )
        assert str(caught.value) == message
    assert contents(output.with_name("out.partial")) == before


def test_an_interrupted_run_comes_before_the_finished_output_that_it_would_replace(
    model, output, gptq, expected
):
    quantize(model, options=RTN, output=output)
    stop = StopAfter(2)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, options=gptq, output=output, overwrite=True, progress=stop, kept=stop.kept)
    # Without --overwrite: the run began with it.
    quantize(model, options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]


def test_a_resumed_run_replaces_no_output_that_came_after_it(model, output, gptq, expected):
    interrupt(model, output, gptq)
    (output / "mine").mkdir(parents=True)
    with pytest.raises(OutputError, match="exists and is not empty"):
        quantize(model, options=gptq, output=output, resume=True)
    assert (output / "mine").exists()
    (output / "mine").rmdir()
    quantize(model, options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]


def test_overwrite_without_resume_forgets_the_run_of_other_inputs(model, output, gptq, expected):
    interrupt(model, output, gptq, layers=2)
    quantize(model, options=RTN, output=output, overwrite=True)
    assert contents(output) == expected["rtn"]


def test_identity_holds_the_answers_but_not_where_they_are_kept(tmp_path, gptq):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model"))
    own = replace(gptq, answers="own")

    def identify(answers_sha256, options=own):
        calibration = {"answers": {"answers_sha256": answers_sha256}, "seed": options.seed}
        return identity.identify(checkpoint, options, "m", calibration, choose_compute("cpu"))

    (line,) = identity.differences(identify("aa"), identify("bb"))
    assert line == "calibration answers answers_sha256: aa then, bb now"
    # Of other rows the answers only follow.
    changed = replace(own, num_samples=9)
    assert identity.differences(identify("aa"), identify("bb", changed)) == [
        "--num-samples: 24 then, 9 now"
    ]
    assert identify("aa", replace(own, answers_cache=tmp_path / "cache")) == identify("aa")
    (line,) = identity.differences(
        identify("aa"), identify("aa", replace(own, max_answer_tokens=7))
    )
    assert line == "--max-answer-tokens: 512 then, 7 now"


def test_what_was_typed_is_named_and_nothing_that_only_follows(model, output, gptq, tmp_path):
    interrupt(model, output, gptq)
    (other := tmp_path / "other.txt").write_text("three four five " * 9000, "utf-8")
    words = gptq.sources[0]
    for changed, lines in (
        (replace(gptq, sequence_length=16, dampening_frac=0.2), ["dampening", "seq-len"]),
        (replace(gptq, sources=(CalibrationSource("text", other),)), ["calibration"]),
        (
            replace(gptq, sources=(words, CalibrationSource("text", other, 2.0))),
            ["calibration, number 2: none then, text=other.txt:2 now"],
        ),
        (RTN, ["method: gptq then, rtn now"]),
    ):
        with pytest.raises(OutputError) as caught:
            quantize(model, options=changed, output=output, resume=True)
        _, *found, _ = str(caught.value).splitlines()
        assert len(found) == len(lines)
        for line, start in zip(found, lines, strict=True):
            assert line.startswith(f"  - --{start}")
    quantize(model, options=gptq, output=output, resume=True)


def test_one_group_is_another_output_than_groups_of_128(tmp_path):
    """Also where version 0.1.0 wrote it, which called it gptq and stated no group size."""
    source, output = write_checkpoint(tmp_path / "m", **WIDE), tmp_path / "out"
    one_group = replace(RTN, formats=("gptq-one-group",))
    quantize(source, options=one_group, output=output)
    assert quantize(source, options=one_group, output=output, resume=True).already_finished
    now = replace(RTN, formats=("gptq",))
    with pytest.raises(OutputError, match="--group-size: -1 then, 128 now"):
        quantize(source, options=now, output=output, resume=True)
    path = output / TIMING_NAME
    timing = texts.read_json(path)
    del timing["identity"]["option group_size"]
    timing["identity"]["option formats 0"] = "gptq"
    path.write_text(seal_json({key: value for key, value in timing.items() if key != "seal"}))
    with pytest.raises(OutputError, match="--group-size: none then, 128 now"):
        quantize(source, options=now, output=output, resume=True)
