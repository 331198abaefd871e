"""What the tests of resuming share: one tiny checkpoint, and the files of its whole runs."""

import shutil

import pytest
from checkpoint_builders import write_checkpoint
from resume_runs import NUM_LAYERS, RTN, contents
from texts import write_numbers

from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    return write_numbers(tmp_path_factory.mktemp("text") / "words.txt", 3000)


@pytest.fixture(scope="session")
def gptq(words):
    return QuantizeOptions("gptq", (CalibrationSource("text", words),), 24, 32)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A checkpoint; beside it every test writes."""
    return write_checkpoint(tmp_path_factory.mktemp("resume") / "model", num_layers=NUM_LAYERS)


@pytest.fixture(scope="session")
def expected(model, gptq):
    """The files of an uninterrupted run, by method."""
    result = {}
    for options in (gptq, RTN):
        whole = model.with_name(f"whole-{options.method}")
        result[options.method] = contents(quantize(model, options=options, output=whole).output_dir)
    return result


@pytest.fixture
def output(model):
    yield model.with_name("out")
    for path in model.parent.iterdir():
        if "out" in path.name:
            shutil.rmtree(path)
