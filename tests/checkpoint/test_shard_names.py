"""Which weight files belong to one saving, by their names."""

import os
import subprocess
import time

import pytest
from checkpoint_builders import write_checkpoint

from vacc_deploy.bounds import SHARDS
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.shard_names import ShardSet, find_sets
from vacc_deploy.errors import CheckpointError
from vacc_deploy.prepare import prepare


def test_names_with_numbers_of_two_widths():
    names = ["model-00001-of-000002.safetensors", "model.safetensors", "x.json"]
    (found,) = find_sets(names)
    assert found.all_names() == [names[0], "model-00002-of-000002.safetensors"]
    assert found.describe() == "model-...-of-000002 (1 of 2 files)" and not found.is_whole


def test_savings_are_told_apart_and_a_huge_number_lists_nothing():
    names = ["a-00001-of-00001.safetensors", "a-00001-of-00002.safetensors"]
    assert [found.is_whole for found in find_sets(names)] == [True, False]
    (huge,) = find_sets(["a-00001-of-99999.safetensors"])
    assert huge.all_names() == [] and not huge.is_whole


def test_a_huge_number_in_many_names_takes_no_time():
    sets = find_sets(f"a{number}-000001-of-999999.safetensors" for number in range(2000))
    begin = time.process_time()
    assert not any(found.is_whole for found in sets)
    assert time.process_time() - begin < 1


def test_a_saving_of_as_many_files_as_may_be_is_whole_and_of_one_more_is_not():
    for count in (SHARDS, SHARDS + 1):
        found = ShardSet("a", 5, f"{count:05}", frozenset(range(1, count + 1)))
        assert found.is_whole == (count == SHARDS) == bool(found.all_names())


@pytest.mark.parametrize(
    "stem", ["part:1", "x" * 205, "a\nb", "a'\\\tb", os.fsdecode(b"a\xff"), "\u202eb"]
)
def test_a_file_that_no_index_may_name_is_renamed_first(tmp_path, stem):
    """Without an index prepare writes one, which has to be read again."""
    names = ["weights-1.safetensors", f"{stem}.safetensors"]
    written = ["weights-1.safetensors", "b.safetensors"]
    source = write_checkpoint(tmp_path / "m 'm", shard_names=written, with_index=False)
    (source / written[1]).rename(source / names[1])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source)
    heads, *commands = str(caught.value).splitlines()
    assert heads.startswith(f"{source} holds weight files whose names no index may give")
    assert all(line.isprintable() for line in commands)
    (move,) = [line for line in commands if line.startswith("  mv -n ")]
    subprocess.run(["bash", "-c", move], check=True)
    prepare(source, output=tmp_path / "out")
    assert set(Checkpoint.open(tmp_path / "out").shards) == {names[0], "weights-2.safetensors"}


def test_of_many_such_files_the_first_ones_are_listed(tmp_path):
    source = write_checkpoint(tmp_path / "m", shard_names=["a.safetensors"], with_index=False)
    for number in range(12):
        (source / f"{number:02}:.safetensors").touch()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source)
    lines = str(caught.value).splitlines()
    assert sum(line.startswith("  mv -n ") for line in lines) == 10
    assert lines[-1] == "  and 2 more"
