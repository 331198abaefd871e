"""No command may replace what it reads, wherever the links of its source lead."""

import pytest

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.errors import OutputError
from vacc_deploy.graphs.export import export_onnx
from vacc_deploy.graphs.result import ExportOptions
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.vamc.compile_file import make_compile_file, write_compile_file
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import find_target

WEIGHTS = "model.safetensors"


def write_yaml(source, *, output, overwrite):
    made = make_compile_file(
        find_target(str(source), None, str), CompileOptions(prefill=128, total=256)
    )
    write_compile_file(made, output / WEIGHTS, overwrite=overwrite)


def export(source, **options):
    export_onnx(source, options=ExportOptions("decode", 16, 32), **options)


def round_weights(source, **options):
    quantize(source, options=QuantizeOptions(method="rtn"), **options)


@pytest.mark.parametrize("command", [prepare, round_weights, export, write_yaml])
def test_what_the_links_of_a_source_lead_to_is_never_replaced(tmp_path, command):
    weights, source = tmp_path / "P", tmp_path / "A"
    prepare(demo_model_dir(), output=weights, link_mode="copy")
    prepare(weights, output=source, link_mode="symlink")
    before = {path.name: path.read_bytes() for path in weights.iterdir()}
    with pytest.raises(OutputError) as caught:
        command(source, output=weights, overwrite=True)
    assert str(weights) in str(caught.value)
    assert {path.name: path.read_bytes() for path in weights.iterdir()} == before
    assert (source / WEIGHTS).read_bytes() == before[WEIGHTS]
