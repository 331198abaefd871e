"""Without the package gguf, or with another thing of its name, nothing begins."""

import sys
import types
from importlib import metadata

import pytest
from checkpoint_builders import write_checkpoint

from vacc_deploy.errors import UsageError
from vacc_deploy.gguf_file.package import check_package
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

gguf = pytest.importorskip("gguf")
OPTIONS = QuantizeOptions("rtn", formats=("gguf",))
START = "--format gguf needs the package gguf."
INSTALL = " Run: python3 -m pip install --upgrade 'vacc-deploy[gguf]'"


def refused(what):
    with pytest.raises(UsageError) as caught:
        what()
    message = str(caught.value)
    assert message.startswith(START) and message.endswith(INSTALL)
    return message.removeprefix(START).removesuffix(INSTALL)


def test_its_version_is_told():
    assert check_package() == metadata.version("gguf")


def test_nothing_begins_without_it(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(lambda: quantize(source, options=OPTIONS)) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_its_name_is_not_it(tmp_path, monkeypatch):
    """Our own output of several formats makes one."""
    (tmp_path / "gguf").mkdir()
    monkeypatch.delitem(sys.modules, "gguf")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert refused(check_package) == (
        f" What is imported under this name is {tmp_path / 'gguf'}, without GGUFWriter, "
        "GGUFValueType, GGMLQuantizationType: an old one, another one, or a mere folder. Leave "
        "that folder, or install the package."
    )


def test_an_old_one_or_one_that_fails_is_not_it(tmp_path, monkeypatch):
    old = types.ModuleType("gguf")
    old.__file__, old.GGUFWriter = "/old/gguf.py", type("GGUFWriter", (), {"add_key_value": 0})
    monkeypatch.setitem(sys.modules, "gguf", old)
    assert "/old/gguf.py, without GGUFValueType, GGMLQuantizationType, add_te" in refused(
        check_package
    )
    (tmp_path / "gguf.py").write_text("import numpy\nnumpy.no_such_name\n", "utf-8")
    monkeypatch.delitem(sys.modules, "gguf")
    monkeypatch.syspath_prepend(tmp_path)
    assert " It cannot be imported: AttributeError: " in refused(check_package)
    (tmp_path / "gguf.py").write_text("import no_such_package\n", "utf-8")
    assert " It cannot be imported: No module named 'no_such_package'." in refused(check_package)


@pytest.mark.parametrize("version", ["0.18.0", "0.9.1", "0"])
def test_an_older_release_is_not_it(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert refused(check_package) == f" Version {version} is installed, expected 0.19."


def test_without_a_version_it_is_not_installed(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert refused(check_package) == (
        f" {gguf.__file__} is not installed, so its version is not known."
    )
