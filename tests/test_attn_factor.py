"""``--attn-factor``: the two readings of yarn's factor, in ``prepare`` and in ``verify``."""

import json

import pytest
from checkpoint_builders import YARN_ROPE, write_checkpoint
from click.testing import CliRunner

from vacc_deploy.cli import cli
from vacc_deploy.cli.options import ATTN_FACTORS
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.models.rope import IGNORE, MULTIPLY, paper_factor
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.verify import verify

TEXT = "".join(char * 12 for char in "The quick brown fox jumps over the lazy dog.")


def write_model(tmp_path, name="model", **changed):
    overrides = {"rope_scaling": {**YARN_ROPE, **changed}, "max_position_embeddings": 128}
    return write_checkpoint(tmp_path / name, model_type="qwen3", config_overrides=overrides)


def compare(tmp_path, deployed, **options):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return verify(deployed, text_file=path, sequence_length=64, limits=None, **options)


def rope(directory, name):
    return json.loads((directory / name).read_text())["rope_scaling"]


def test_the_names_of_the_command_line_are_those_of_the_rule():
    assert (MULTIPLY, IGNORE) == ATTN_FACTORS


@pytest.mark.parametrize(
    ("how", "factor", "attn"),
    [(MULTIPLY, 1.0, YARN_ROPE["attn_factor"]), (IGNORE, paper_factor(4.0), 1.0)],
)
def test_prepare_writes_what_it_reads_under_every_name(tmp_path, how, factor, attn):
    source = write_model(tmp_path)
    result = prepare(source, output=tmp_path / "out", attn_factor=how)
    written = rope(result.output_dir, "config.json")
    assert (written["attention_factor"], written["attn_factor"]) == (factor, attn)
    assert rope(result.output_dir, "config_vacc.json")["attention_factor"] == factor
    assert sum("rule attention-factor" in note for note in result.notes) == 1
    manifest = json.loads((result.output_dir / "vacc_deploy.json").read_text())
    assert manifest["options"] == {"link_mode": "auto", "attn_factor": how}
    # Prepared again, nothing is open any more.
    notes = prepare(result.output_dir, output=tmp_path / "again").notes
    assert not any("attn_factor" in note for note in notes)


@pytest.mark.parametrize("how", [MULTIPLY, IGNORE])
def test_verify_reads_the_float_model_as_the_directory_does(tmp_path, how):
    source = write_model(tmp_path)
    prepared = prepare(source, output=tmp_path / "out", attn_factor=how).output_dir
    result = compare(tmp_path, prepared)
    assert result.scores.max_kl == 0
    quantized = quantize(prepared, options=QuantizeOptions("rtn", formats=("int8",))).output_dir
    result = compare(tmp_path, quantized, reference_dir=source)
    assert result.scores.mean_kl < 1e-3
    assert not any("attention factor" in note for note in result.notes)


def test_verify_measures_how_much_the_two_readings_differ(tmp_path):
    source = write_model(tmp_path)
    prepared = prepare(source, output=tmp_path / "out").output_dir
    result = compare(tmp_path, prepared, attn_factor=IGNORE)
    assert result.scores.mean_kl > 1e-6
    assert any(
        "attention factor 1, the float model is read with 1.13863" in n for n in result.notes
    )
    assert compare(tmp_path, prepared, attn_factor=MULTIPLY).scores.max_kl == 0
    # Two prepared directories may be compared, too.
    other = prepare(source, output=tmp_path / "other", attn_factor=IGNORE).output_dir
    assert compare(tmp_path, prepared, reference_dir=other).scores == result.scores


def test_another_factor_than_the_attention_factor_is_another_model(tmp_path):
    prepared = prepare(write_model(tmp_path), output=tmp_path / "out").output_dir
    other = write_model(tmp_path, "other", factor=2.0, original_max_position_embeddings=64)
    with pytest.raises(CheckpointError, match="rope_scaling is"):
        compare(tmp_path, prepared, reference_dir=other)


@pytest.mark.parametrize("scaling", [None, {**YARN_ROPE, "attention_factor": 1.0}])
def test_where_nothing_is_open_there_is_nothing_to_choose(tmp_path, scaling):
    overrides = {"rope_scaling": scaling, "max_position_embeddings": 128}
    source = write_checkpoint(tmp_path / "model", model_type="qwen3", config_overrides=overrides)
    for how in (IGNORE, MULTIPLY):
        with pytest.raises(UsageError, match="Leave --attn-factor out"):
            prepare(source, output=tmp_path / "out", attn_factor=how)
    assert not (tmp_path / "out").exists()


def test_a_prepared_directory_leaves_nothing_to_choose_and_names_its_source(tmp_path):
    source = write_model(tmp_path)
    prepared = prepare(source, output=tmp_path / "out").output_dir
    with pytest.raises(UsageError, match=f"that it was made from: {source}"):
        prepare(prepared, output=tmp_path / "again", attn_factor=IGNORE)


@pytest.mark.parametrize("how", ["Multiply", "", "both"])
def test_another_word_is_refused(tmp_path, how):
    source = write_model(tmp_path)
    with pytest.raises(UsageError, match="expected multiply or ignore"):
        prepare(source, output=tmp_path / "out", attn_factor=how)


def test_the_command_line(tmp_path):
    source = write_model(tmp_path)
    arguments = ["prepare", str(source), "--output", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--attn-factor", "ignore"])
    assert result.exit_code == 0
    assert "attn_factor is ignored" in json.dumps(json.loads(result.stdout)["notes"])
    wrong = CliRunner().invoke(cli, [*arguments, "--attn-factor", "both"])
    assert wrong.exit_code == 2
