"""The number of threads: by the size of the model, and as before afterwards."""

import pytest
import torch
from checkpoint_builders import write_checkpoint

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.demo import run as demo_module
from vacc_deploy.models.catalog import MODELS
from vacc_deploy.reference import generate as generate_module
from vacc_deploy.reference import verify as verify_module
from vacc_deploy.reference.threads import threads_for, torch_threads


@pytest.fixture
def three_threads():
    with torch_threads(3):
        yield


def test_torch_threads_are_as_before_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_a_small_model_runs_on_one_thread_and_a_catalogue_model_on_all(tmp_path, three_threads):
    with threads_for(Checkpoint.open(write_checkpoint(tmp_path / "m")).config):
        assert torch.get_num_threads() == 1
    for model in MODELS.values():
        with threads_for(model.config):
            assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


class Reached(Exception):
    """Ends a command where its work begins."""


def stop(*_args, **_options):
    raise Reached(torch.get_num_threads())


def test_generate_runs_a_small_model_on_one_thread(tmp_path, three_threads, monkeypatch):
    monkeypatch.setattr(generate_module, "continue_prompts", stop)
    with pytest.raises(Reached, match="^1$"):
        generate_module.generate(write_checkpoint(tmp_path / "m"), prompt="a", max_new_tokens=1)


def test_verify_runs_a_small_model_on_one_thread(tmp_path, three_threads, monkeypatch):
    monkeypatch.setattr(verify_module, "compare_on_tokens", stop)
    source = write_checkpoint(tmp_path / "m")
    with pytest.raises(Reached, match="^1$"):
        verify_module.verify(source, reference_dir=source, max_tokens=64, limits=None)


def test_the_demo_runs_on_one_thread(tmp_path, three_threads, monkeypatch):
    monkeypatch.setattr(demo_module, "prepare", stop)
    with pytest.raises(Reached, match="^1$"):
        demo_module.demo(output=tmp_path / "out")
    assert torch.get_num_threads() == 3
