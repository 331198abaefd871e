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
            CARDS["VA16"], config, dtype="fp16", tensor_parallel_size=1, num_tokens=100
        )
        assert plan.weight_bytes_per_die == 2 * config.num_parameters()
        assert plan.kv_bytes_per_die == 100 * config.kv_bytes_per_token


def test_plan_memory_tells_what_fits():
    def plan(size):
        return plan_memory(
            CARDS["VA16"], LLAMA_70B, dtype="fp16", tensor_parallel_size=size, num_tokens=2048
        )

    assert not plan(4).weights_fit
    assert "1.0 GiB too much" in dict(plan(4).to_pairs())["memory per die"]
    assert plan(8).weights_fit
    assert (plan(1).num_cards, plan(8).num_cards) == (1, 2)
    assert "left for more sequences" in dict(plan(8).to_pairs())["memory per die"]
    assert plan(8).to_dict()["free_bytes_per_die"] == plan(8).free_bytes
