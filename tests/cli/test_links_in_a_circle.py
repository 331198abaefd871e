"""A link that leads back to itself, in place of each path that a command takes."""

import pytest
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner

from vacc_deploy.cli import cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prepare MODEL --output LOOP", "is a link to LOOP, and an output never replaces a link"),
        ("prepare MODEL --output LOOP/x", "LOOP is not a directory. Choose another"),
        ("prepare LOOP --output OUT", "is a link to LOOP, which leads back to itself"),
        ("quantize MODEL --output LOOP", "is a link to LOOP, and an output never replaces a link"),
        ("quantize LOOP --output OUT", "is a link to LOOP, which leads back to itself"),
        (
            "quantize MODEL --output OUT --calibration chat=LOOP",
            "Too many levels of symbolic links",
        ),
        ("quantize MODEL --output OUT --calibration ceval=LOOP/x", "Too many levels of symbolic"),
        ("export-onnx LOOP --output OUT", "is a link to LOOP, which leads back to itself"),
        ("verify MODEL --reference LOOP", "is a link to LOOP, which leads back to itself"),
    ],
)
def test_a_link_in_a_circle_is_an_error_of_ours(tmp_path, arguments, message):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    paths = {"MODEL": write_checkpoint(tmp_path / "m"), "LOOP": loop, "OUT": tmp_path / "out"}
    for name, path in paths.items():
        arguments, message = (text.replace(name, str(path)) for text in (arguments, message))
    result = CliRunner().invoke(cli, arguments.split())
    assert result.exit_code == 1 and message in result.stderr, result.output
