"""What a wheel holds, and that every way of installing finds its files."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from vacc_deploy.assets import SOURCE_FILES, asset_dir, default_text_file, demo_model_dir

ROOT = Path(__file__).resolve().parent.parent
ASSET_FOLDERS = ("source_code", "yaml", "build_in")


def tracked(*folders: str) -> list[str]:
    """Return the files that git tracks; where there is no git, those that lie there."""
    command = ["git", "-C", str(ROOT), "ls-files", *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0 and result.stdout:
        return result.stdout.split("\n")[:-1]
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
def wheel(tmp_path_factory) -> Path:
    """Build a wheel from a fresh copy of the tracked files."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, cwd=source)
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
def test_installed_package_finds_its_files(how, wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, system_site_packages=False)
    site = next((environment / "lib").glob("python*/site-packages"))
    # The dependencies come from this environment; only vacc-deploy itself is installed anew.
    python = environment / "bin/python"
    what = {"wheel": [str(wheel)], "plain": [str(ROOT)], "editable": ["-e", str(ROOT)]}[how]
    if how != "wheel":
        copy = tmp_path / "checkout"
        for name in tracked():
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes((ROOT / name).read_bytes())
        what[-1] = str(copy)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "zz_dependencies.pth").write_text("\n".join(dependencies))
    subprocess.run([*command, "--no-deps", "--no-build-isolation", *what], check=True)
    script = (
        "import vacc_deploy, vacc_deploy.assets as a; from pathlib import Path;"
        "print(vacc_deploy.__file__);"
        "assert all(a.source_file(n).is_file() for n in a.SOURCE_FILES);"
        "assert list(a.asset_dir('yaml').glob('*.yaml'));"
        "assert list(a.asset_dir('build_in').glob('*/config_vacc.json'));"
        "assert (a.demo_model_dir() / 'model.safetensors').is_file();"
        "assert a.default_text_file().is_file()"
    )
    # -I: no PYTHONPATH, which may name this checkout.
    result = subprocess.run(
        [str(python), "-I", "-c", script], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert str(tmp_path) in result.stdout
    executable = environment / "bin/vacc-deploy"
    result = subprocess.run(
        [str(executable), "models"], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert "Distill-Qwen-7B" in result.stdout
