"""How yarn is read and written down, beside transformers and the arithmetic of vLLM."""

import math

import pytest
import torch
from checkpoint_builders import YARN_ROPE, build_config, write_checkpoint
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.models.library_config import library_config
from vacc_deploy.models.parse import parse_config
from vacc_deploy.models.rope import names_attn_factor, settle_yarn, without_attn_factor
from vacc_deploy.models.vacc_config import vacc_config
from vacc_deploy.reference.decoder import rotary_frequencies

PLAIN = {key: value for key, value in YARN_ROPE.items() if key != "attn_factor"}
PAPER = 0.1 * math.log(4.0) + 1.0


def build(scaling, model_type="qwen3", length=128, **overrides):
    overrides = {"rope_scaling": scaling, "max_position_embeddings": length, **overrides}
    return build_config(model_type=model_type, overrides=overrides)


def parse(scaling, model_type="qwen3", length=128, **overrides):
    return parse_config(build(scaling, model_type, length, **overrides), where="c.json")


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_yarn_needs_a_base_above_one(theta):
    with pytest.raises(CheckpointError, match=f"rope_theta: got {theta:g}, expected above 1 for"):
        parse(PLAIN, rope_theta=theta)


def test_the_trained_length_is_a_whole_number():
    scaling = {**PLAIN, "original_max_position_embeddings": 33.5}
    with pytest.raises(CheckpointError, match="got 33.5, expected a whole number from 1 to"):
        parse(scaling)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(
    ("theta", "head_dim", "changed"),
    [
        (10000.0, 16, {}),
        (1000000.0, 16, {"original_max_position_embeddings": 32768}),
        (10000.0, 16, {"beta_fast": 4, "beta_slow": 3.9}),  # a ramp of no width
        (1000000.0, 16, {"factor": 1.0, "attention_factor": 1.3}),
    ],
)
def test_yarn_equals_transformers(model_type, theta, head_dim, changed):
    scaling = {**PLAIN, **changed}
    length = int(scaling["factor"] * scaling["original_max_position_embeddings"])
    raw = build(scaling, model_type, length, rope_theta=theta, head_dim=head_dim)
    config = parse_config(raw, where="c.json")
    # From the file itself, and from what our loader gives to transformers.
    for values in (raw, library_config(config)):
        library = AutoConfig.for_model(**values)
        frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](library)
        assert config.rope_scaling.attention_factor == pytest.approx(factor, abs=1e-12)
        assert torch.equal(rotary_frequencies(config), frequencies)


def test_yarn_stretches_what_turns_little_and_keeps_what_turns_often():
    scaling = {**PLAIN, "original_max_position_embeddings": 4096}
    config = parse(scaling, length=16384, head_dim=128)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 128, 2) / 128)
    ratio = plain / rotary_frequencies(config)
    assert torch.allclose(ratio[0], torch.tensor(1.0))
    assert torch.allclose(ratio[-1], torch.tensor(4.0))
    assert ((ratio > 1.01) & (ratio < 3.99)).any()


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, PAPER),
        ({"attn_factor": 0.8782488562869419}, 1.0),
        ({"attn_factor": 2}, 2 * PAPER),
        ({"attention_factor": 1.25}, 1.25),
        ({"attention_factor": 1.0, "attn_factor": 0.8782488562869419}, 1.0),
    ],
)
def test_attention_factor_is_the_product_that_the_makers_serve(stated, expected):
    config = parse({**PLAIN, **stated})
    assert config.rope_scaling.attention_factor == pytest.approx(expected, abs=1e-12)
    assert vacc_config(config)["rope_scaling"]["attention_factor"] == pytest.approx(expected)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("stated", "attention", "attn"),
    [
        ({"attn_factor": 0.8782488562869419}, 1.0, 0.8782488562869419),
        ({"attention_factor": 1.0}, 1.0, 1 / PAPER),
    ],
)
def test_settle_writes_the_factor_under_both_names(key, stated, attention, attn):
    values = {key: {**PLAIN, **stated}, "max_position_embeddings": 128}
    changes, notes = settle_yarn(values)
    assert list(changes) == [key]
    assert changes[key]["attention_factor"] == attention
    assert changes[key]["attn_factor"] == pytest.approx(attn, abs=1e-11)
    assert list(notes) == ["attention-factor"]
    # Settled once, nothing is left to say.
    assert settle_yarn({**values, **changes}) == ({}, {})


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        # The recipe of Qwen2.5 leaves max_position_embeddings as it was.
        ({"max_position_embeddings": 32}, "max_position_embeddings 32 is read as 128"),
        # transformers 4.51 would take its class's default for the length, and another factor.
        ({}, "max_position_embeddings is not stated: it is read as 128"),
    ],
)
def test_settle_takes_the_length_from_the_factor(stated, told):
    changes, notes = settle_yarn({"rope_scaling": PLAIN, **stated})
    assert changes == {"max_position_embeddings": 128}
    assert notes == {
        "yarn-length": f"{told}, factor 4 times the trained length 32: some runtimes would take "
        "another factor from it."
    }


@pytest.mark.parametrize("stated", [0, -1, "128", True, 3.5])
def test_settle_mends_no_length_that_is_none(stated):
    values = {"rope_scaling": PLAIN, "max_position_embeddings": stated}
    assert settle_yarn(values) == ({}, {})


@pytest.mark.parametrize("other", ["text", 7, ["yarn"], True, {}, None])
def test_settle_changes_the_rule_that_is_one(other):
    rule = {**PLAIN, "attention_factor": 1.0}
    values = {"rope_scaling": other, "rope_parameters": rule, "max_position_embeddings": 128}
    changes, _ = settle_yarn(values)
    assert list(changes) == ["rope_parameters"]


@pytest.mark.parametrize("small", [1e-9, 1e-20])
def test_settle_makes_no_contradiction_of_a_small_factor(small):
    values = build({**PLAIN, "attn_factor": small})
    changes, _ = settle_yarn(values)
    assert parse_config({**values, **changes}, where="c.json").rope_scaling


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": "yarn"},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {**PLAIN, "factor": None}},
        {"rope_scaling": {**PLAIN, "factor": "4"}},
        {"rope_scaling": {**PLAIN, "factor": float("nan")}},
        {"rope_scaling": {**PLAIN, "attn_factor": -1}},
        {"rope_scaling": {**PLAIN, "original_max_position_embeddings": 1e300}},
    ],
)
def test_settle_leaves_alone_what_is_no_sound_yarn(values):
    assert settle_yarn({**values, "max_position_embeddings": 128}) == ({}, {})


def test_an_open_attn_factor_is_known_and_can_be_read_as_transformers_does():
    values = build(dict(YARN_ROPE))
    assert names_attn_factor(values)
    assert not names_attn_factor(build(PLAIN))
    assert not names_attn_factor(build({**YARN_ROPE, "attention_factor": 1.0}))
    assert not names_attn_factor(build(None))
    config = without_attn_factor(parse_config(values, where="c.json"))
    assert config.rope_scaling.attention_factor == pytest.approx(PAPER, abs=1e-12)
    # What it says is what it computes: read again it is the same model, also beside a second rule.
    assert parse_config(config.raw, where="c.json").rope_scaling == config.rope_scaling
    for second in ({}, dict(YARN_ROPE)):
        raw = {**values, "rope_parameters": second}
        config = without_attn_factor(parse_config(raw, where="c.json"))
        assert parse_config(config.raw, where="c.json").rope_scaling == config.rope_scaling


def test_checkpoint_open_settles_yarn_and_says_so(tmp_path):
    overrides = {"rope_scaling": dict(YARN_ROPE), "max_position_embeddings": 32}
    directory = write_checkpoint(
        tmp_path / "model", model_type="qwen3", config_overrides=overrides, with_tokenizer=False
    )
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.config.rope_scaling.attention_factor == 1.0
    assert checkpoint.config.max_position_embeddings == 128
    assert [rule.rule for rule in checkpoint.applied] == ["attention-factor", "yarn-length"]
    assert "--attn-factor ignore" in checkpoint.notes[0]
    assert checkpoint.is_config_changed


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"factor": 0.5}, "factor: got 0.5, expected at least 1 for yarn"),
        ({"factor": None}, "factor: got None, expected a positive number"),
        (
            {"original_max_position_embeddings": None},
            "original_max_position_embeddings: got None, expected a positive number",
        ),
        (
            {"original_max_position_embeddings": 0.5},
            "original_max_position_embeddings: got 0.5, expected a whole number from 1 to",
        ),
        ({"beta_fast": 1, "beta_slow": 2}, "beta_fast 1 is not above beta_slow 2"),
        ({"attn_factor": "x"}, "attn_factor: got 'x', expected a positive number"),
        (
            {"attention_factor": 1.2, "attn_factor": 0.5},
            "attention_factor 1.2 and attn_factor 0.5 contradict each other",
        ),
    ],
)
def test_wrong_yarn_is_named(changed, problem):
    with pytest.raises(CheckpointError) as caught:
        parse({**PLAIN, **changed})
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"mscale": 1.0}, "mscale 1.0"),
        ({"truncate": False}, "truncate False"),
        ({"extrapolation_factor": 0.5}, "extrapolation_factor 0.5"),
        ({"apply_yarn_scaling": False}, "apply_yarn_scaling False"),
    ],
)
def test_yarn_that_runtimes_read_differently_is_refused(changed, named):
    with pytest.raises(UnsupportedModelError, match=named):
        parse({**PLAIN, **changed})
    parse({**PLAIN, "truncate": True, "mscale": None})


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_dynamic_scaling_stays_refused(model_type):
    with pytest.raises(UnsupportedModelError, match="'dynamic', expected one of default, linear"):
        parse({"rope_type": "dynamic", "factor": 2.0}, model_type)
