.PHONY: check format test fuzz matrix matrix-short consumers wheel demo yaml bounds checks

check:
	ruff format --check .
	ruff check .
	mypy

format:
	ruff format .
	ruff check --fix .

test: check
	python -m pytest -n 2

# Without the package atheris this says so and does nothing.
FUZZ_SECONDS = 60
fuzz:
	python tests/fuzz --seconds $(FUZZ_SECONDS)

# The rows of torch 2.1: make matrix OLD_TORCH="--old-torch python3.8 --old-torch python3.11"
matrix:
	python tests/matrix/run_matrix.py --markdown docs/compatibility.md $(OLD_TORCH)
	python tests/matrix/run_tokenizers.py --markdown docs/tokenizer.md

matrix-short:
	python tests/matrix/run_matrix.py --short

# Directories of every layout in the programs of others: make consumers MODELS="DIR DIR" (8 GB)
consumers:
	python tests/consumers/run_consumers.py $(MODELS:%=--model %) --markdown docs/formats.md

wheel:
	rm -rf build dist *.egg-info
	python -m build

demo:
	vacc-deploy demo --overwrite

yaml:
	rm -f yaml/*.yaml build_in/*/config_vacc.json
	vacc-deploy yaml --all --output yaml --build-in build_in

bounds:
	python tests/helpers/security_page.py

checks:
	python tests/helpers/checks_page.py
