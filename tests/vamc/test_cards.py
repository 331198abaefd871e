from dataclasses import replace

import pytest

from vacc_deploy.models.catalog import MODELS, find_model
from vacc_deploy.vamc.cards import CARDS, GIB, kv_bytes_per_die, plan_memory, weight_bytes

QWEN_7B = find_model("Distill-Qwen-7B").config
LLAMA_70B = find_model("Distill-Llama-70B").config


def test_cards_hold_the_known_dies_and_say_who_says_so():
    facts = {c.name: (c.num_dies, c.die_memory_bytes // GIB, c.source) for c in CARDS.values()}
    assert facts == {
        "VA16": (4, 32, "inferred"),
        "VA1L": (2, 32, "inferred"),
        "VA10L": (4, 32, "third party"),
        "VA1-16G": (2, 8, "published"),
    }


def test_weight_bytes_int8_counts_codes_scales_and_the_float_rest():
    layer = 3584 * 3584 * 2 + 3584 * 512 * 2 + 3 * 3584 * 18944
    rows = 3584 * 2 + 512 * 2 + 18944 * 2 + 3584
    other = 7_615_616_512 - 28 * layer
    assert weight_bytes(QWEN_7B, "int8") == 28 * (layer + 2 * rows) + 2 * other


@pytest.mark.parametrize(
    ("dies", "heads_per_die"), [(1, 4), (2, 2), (4, 1), (8, 1)], ids=lambda v: str(v)
)
def test_kv_bytes_per_die_counts_whole_heads(dies, heads_per_die):
    got = kv_bytes_per_die(QWEN_7B, tensor_parallel_size=dies, num_tokens=2048)
    assert got == 2 * 28 * heads_per_die * 128 * 2 * 2048


def test_plan_memory_on_one_die_equals_the_configuration_totals():
    for model in MODELS.values():
        config = model.config
        plan = plan_memory(
            CARDS["VA16"], config, dtype="fp16", tensor_parallel_size=1, lengths=(16, 100)
        )
        assert plan.weight_bytes_per_die == 2 * config.num_parameters()
        assert plan.kv_bytes_per_die == 100 * config.kv_bytes_per_token


def test_plan_memory_tells_what_fits():
    def plan(size):
        return plan_memory(
            CARDS["VA16"], LLAMA_70B, dtype="fp16", tensor_parallel_size=size, lengths=(16, 2048)
        )

    assert not plan(4).weights_fit
    assert "1.0 GiB too much" in dict(plan(4).to_pairs())["memory per die"]
    assert plan(8).weights_fit
    assert (plan(1).num_cards, plan(8).num_cards) == (1, 2)
    assert "left for more sequences" in dict(plan(8).to_pairs())["memory per die"]
    assert plan(8).to_dict()["free_bytes_per_die"] == plan(8).free_bytes


def plan_7b(card=CARDS["VA16"], dtype="fp16", lengths=(1024, 2048), config=QWEN_7B, size=4):
    return plan_memory(card, config, dtype=dtype, tensor_parallel_size=size, lengths=lengths)


def test_the_activations_are_those_of_the_widest_stage():
    attention = 1024 * (7 + 2) * 128 * 2 + 7 * 1024 * 1024 * 6
    states = 2 * 1024 * 3584 * 2
    assert plan_7b().activation_bytes_per_die == states + attention
    # A short prompt: gate and up are wider.
    mlp = 2 * 128 * (18944 // 4) * 2
    assert plan_7b(lengths=(128, 256)).activation_bytes_per_die == 2 * 128 * 3584 * 2 + mlp
    # Llama has no insert_slice, so the head makes logits of every position.
    logits = 1024 * (128256 // 8) * 4
    llama = plan_7b(config=LLAMA_70B, size=8).activation_bytes_per_die
    assert llama == 2 * 1024 * 8192 * 2 + logits


def test_the_longest_total_fills_the_die_and_no_more():
    small = replace(CARDS["VA1-16G"], die_memory_bytes=4 * GIB)
    plan = plan_7b(small)
    longest = plan.longest_total
    assert longest % 16 == 0 and 2048 < longest < QWEN_7B.max_position_embeddings
    assert plan_7b(small, lengths=(1024, longest)).fits
    assert not plan_7b(small, lengths=(1024, longest + 16)).fits
    assert plan.num_sequences == longest // 2048
    assert plan_7b().longest_total == QWEN_7B.max_position_embeddings


def test_nothing_fits_beside_weights_that_fill_the_die():
    plan = plan_7b(CARDS["VA1-16G"], size=1)
    assert not plan.weights_fit and not plan.fits
    assert (plan.longest_total, plan.num_sequences) == (0, 0)
    assert "no sequence" in dict(plan.to_pairs())["what fits"]


def test_a_rate_follows_from_a_bandwidth_that_the_user_knows():
    plan = plan_7b()
    weights = -(-(2 * QWEN_7B.num_parameters() - 2 * 152064 * 3584) // 4)
    assert plan.bytes_per_token == weights + plan.kv_bytes_per_die
    assert plan.tokens_per_second is None and plan.to_dict()["memory_bandwidth"] is None
    assert "no bandwidth is published" in dict(plan.to_pairs())["memory traffic"]
    known = plan_7b(CARDS["VA16"].with_bandwidth(200))
    assert known.tokens_per_second == pytest.approx(200e9 / plan.bytes_per_token)
    assert "at 200 GB/s no more than" in dict(known.to_pairs())["memory traffic"]
    assert known.to_dict()["max_tokens_per_second"] == known.tokens_per_second


def test_an_embedding_that_is_the_head_is_read_whole():
    config = find_model("Qwen3-0.6B").config
    assert config.tie_word_embeddings
    assert plan_7b(config=config, size=1).read_bytes_per_die == weight_bytes(config, "fp16")
