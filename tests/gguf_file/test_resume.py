"""Runs of ``--format gguf`` that are killed, and the bytes of their resumption."""

import pytest
from checkpoint_builders import write_checkpoint
from resume_runs import NUM_LAYERS, at_call, contents, killed, names_around

from vacc_deploy.gguf_file import assemble
from vacc_deploy.outputs import output as output_module
from vacc_deploy.outputs.partial import partial_path
from vacc_deploy.outputs.run_files import GGUF_PREFIX
from vacc_deploy.quantize import finish, shards
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

pytest.importorskip("gguf")
POINTS = {
    "a shard": at_call(
        shards, "write_shard", lambda path, _: path.name.endswith("00003.safetensors")
    ),
    "the header": at_call(assemble, "read_header", is_after=True),
    "some tensors": at_call(
        assemble, "_chunks", lambda _, tensor, __: tensor.name == "blk.1.attn_q.weight"
    ),
    "the Modelfile": at_call(finish, "write_text", lambda path, _: path.name == "Modelfile"),
    "the manifest": at_call(finish, "write_manifest", is_after=True),
    "the rename": at_call(output_module, "_put_in_place", is_after=True),
    "one shard removed": at_call(
        output_module, "is_run_file", lambda path: path.name.startswith(GGUF_PREFIX)
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("killed") / "model", num_layers=NUM_LAYERS)


@pytest.fixture(scope="module")
def expected(model):
    options = QuantizeOptions("rtn", formats=("gguf",))
    return contents(quantize(model, options=options, output=model.with_name("whole")).output_dir)


@pytest.mark.parametrize("point", POINTS)
def test_resume_after_a_kill_gives_the_bytes_of_a_whole_run(model, expected, point):
    output = model.with_name(f"out {point}")
    arguments = {"options": QuantizeOptions("rtn", formats=("gguf",)), "output": output}
    killed(POINTS[point], model, **arguments)
    partial = partial_path(output)
    if partial.exists() and point != "a shard":
        # Whatever is assembled by then, all shards are there to go on with.
        assert len(list(partial.glob(f"{GGUF_PREFIX}*.safetensors"))) == NUM_LAYERS + 2
    result = quantize(model, **arguments, resume=True)
    assert contents(output) == expected
    assert result.already_finished is (point in ("the rename", "one shard removed"))
    assert names_around(output) == [output.name]


def test_shards_of_several_formats_leave_none_behind(model):
    options = QuantizeOptions("rtn", formats=("gguf", "int8"))
    output = model.with_name("several")
    killed(POINTS["some tensors"], model, options=options, output=output)
    quantize(model, options=options, output=output, resume=True)
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]
    assert {path.name for path in (output / "gguf").iterdir()} >= {"model-Q8_0.gguf", "Modelfile"}
    assert not list((output / "gguf").glob("*.safetensors"))
