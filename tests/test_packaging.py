"""What a wheel holds, and that every way of installing finds its files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from texts import ROOT

from vacc_deploy.assets import SOURCE_FILES, asset_dir, default_text_file, demo_model_dir

ASSET_FOLDERS = ("source_code", "yaml", "build_in")


def tracked(*folders: str) -> list[str]:
    """Return the files that git tracks; where there is no git, those that lie there."""
    command = ["git", "-C", str(ROOT), "ls-files", *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0 and result.stdout:
        return [name for name in result.stdout.splitlines() if (ROOT / name).is_file()]
    paths = [path for folder in folders or ["."] for path in (ROOT / folder).rglob("*")]
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )


def test_import_yaml_is_pyyaml():
    import yaml

    assert hasattr(yaml, "safe_load")


@pytest.mark.parametrize("folder", ASSET_FOLDERS)
def test_asset_folders_are_no_packages(folder):
    assert not list((ROOT / folder).rglob("__init__.py"))


def test_assets_are_found():
    assert all((asset_dir("source_code") / name).is_file() for name in SOURCE_FILES)
    assert default_text_file().is_file()
    assert (demo_model_dir() / "model.safetensors").is_file()


def test_demo_model_is_small():
    assert sum(path.stat().st_size for path in demo_model_dir().iterdir()) <= 3_000_000


def test_lost_asset_folder_says_so():
    with pytest.raises(FileNotFoundError, match="Install vacc-deploy again"):
        asset_dir("no_such_folder")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Copy the tracked files once, so that one state of them is built and installed."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), str(checkout)]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_exactly_the_committed_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"vacc_deploy"}
    for folder in ASSET_FOLDERS:
        held = {
            name.partition("/")[2].partition("/")[2]
            for name in names
            if name.startswith(f"vacc_deploy/_{folder}/")
        }
        assert held == {name.partition("/")[2] for name in tracked(folder)}
    package = {name for name in names if name.startswith("vacc_deploy/")}
    assets = {name for name in package if name.startswith("vacc_deploy/_") and name[13] != "_"}
    assert package - assets == set(tracked("vacc_deploy"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wheel", "plain", "editable"])
def test_installed_package_finds_its_files(how, wheel, checkout, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, system_site_packages=False)
    site = next((environment / "lib").glob("python*/site-packages"))
    # The dependencies come from this environment; only vacc-deploy itself is installed anew.
    python = environment / "bin/python"
    what = {"wheel": [wheel], "plain": [checkout], "editable": ["-e", checkout]}[how]
    # --ignore-installed: pip installs no wheel of a version that it finds in the dependencies.
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-build-isolation", "--ignore-installed", *map(str, what)]
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "zz_dependencies.pth").write_text("\n".join(dependencies))
    subprocess.run(command, check=True)
    script = (
        "import vacc_deploy, vacc_deploy.assets as a; from pathlib import Path;"
        "print(vacc_deploy.__file__);"
        "assert all(a.source_file(n).is_file() for n in a.SOURCE_FILES);"
        "assert list(a.asset_dir('yaml').glob('*.yaml'));"
        "assert list(a.asset_dir('build_in').glob('*/config_vacc.json'));"
        "assert (a.demo_model_dir() / 'model.safetensors').is_file();"
        "assert a.default_text_file().is_file()"
    )
    # -I: no PYTHONPATH, which may name this checkout. stderr is left to the test's own report.
    options = {"check": True, "cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    found = subprocess.run([python, "-I", "-c", script], **options).stdout
    assert str(checkout if how == "editable" else tmp_path) in found
    listed = subprocess.run([environment / "bin/vacc-deploy", "models"], **options).stdout
    assert "Distill-Qwen-7B" in listed
