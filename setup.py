"""Package metadata, and the table that carries the asset folders into the wheel."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / "vacc_deploy/__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)

# Folder at the repository root -> (package that carries it in the wheel, files to take).
ASSETS = {
    "source_code": ("vacc_deploy._source_code", ["*.py"]),
    "yaml": ("vacc_deploy._yaml", ["*.yaml"]),
    "build_in": ("vacc_deploy._build_in", ["*/config_vacc.json"]),
}

setup(
    name="vacc-deploy",
    version=VERSION,
    description="Quantize and deploy DeepSeek-R1 distills (Qwen, Llama) on Vastai VACC cards",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["vacc_deploy", "vacc_deploy.*"]),
        *(package for package, _ in ASSETS.values()),
    ],
    package_dir={package: folder for folder, (package, _) in ASSETS.items()},
    package_data={
        "vacc_deploy": ["py.typed", "data/*.txt", "data/configs/*.json", "data/demo_model/*"],
        **dict(ASSETS.values()),
    },
    install_requires=[
        "click>=8.1",
        "huggingface_hub>=0.30",
        "jinja2>=3.1.6",
        "numpy>=1.24",
        "onnx>=1.16",
        "onnxruntime>=1.17",
        "pyyaml>=6.0",
        "rich>=13",
        "safetensors>=0.4.3",
        "tokenizers>=0.19",
        "torch>=2.1",
        "transformers>=4.43",
    ],
    extras_require={
        # Calibration files as Parquet and zstd. An older pyarrow unpickles what a file tells it to.
        "data": ["pyarrow>=14.0.1", "zstandard>=0.22.0"],
        # GGUF files.
        "gguf": ["gguf>=0.19"],
        # The model "vacc" of lm-evaluation-harness.
        "harness": ["lm-eval>=0.4.13"],
        "test": [
            *("pytest>=8", "pytest-xdist>=3", "build>=1.2", "setuptools>=77", "wheel"),
            # The CUDA kernel is interpreted and compiled without a GPU.
            'triton; platform_system == "Linux" and platform_machine == "x86_64"',
            # A consumer of what quantize writes; the tests load it with stock transformers.
            "compressed-tensors>=0.15",
            # As in the extra "data".
            *("pyarrow>=14.0.1", "zstandard>=0.22.0"),
            # Writes the format "gguf", and reads it back in the tests.
            "gguf>=0.19",
            "hypothesis>=6.100",
        ],
        # Where it has wheels; from source it needs clang.
        "fuzz": [
            'atheris>=2.3; platform_system == "Linux" and platform_machine == "x86_64" '
            'and implementation_name == "cpython" and python_version < "3.15"'
        ],
        # Drives a Chromium that is installed: pages of --report in tests, tools/screenshots.py.
        "browser": ["playwright>=1.40"],
        "dev": ["ruff==0.17.6", "mypy==2.4.1", "pre-commit>=4", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["vacc-deploy = vacc_deploy.cli:main"]},
)
