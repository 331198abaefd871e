"""Which weight files belong to one saving, by their names."""

from vacc_deploy.checkpoint.shard_names import find_sets


def test_names_with_numbers_of_two_widths():
    names = ["model-00001-of-000002.safetensors", "model.safetensors", "x.json"]
    (found,) = find_sets(names)
    assert found.all_names() == [names[0], "model-00002-of-000002.safetensors"]
    assert found.describe() == "model-...-of-000002 (1 of 2 files)" and not found.is_whole


def test_savings_are_told_apart_and_a_huge_number_lists_nothing():
    names = ["a-00001-of-00001.safetensors", "a-00001-of-00002.safetensors"]
    assert [found.is_whole for found in find_sets(names)] == [True, False]
    (huge,) = find_sets(["a-00001-of-99999.safetensors"])
    assert huge.all_names() == []
