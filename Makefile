.PHONY: check format test matrix matrix-short wheel demo yaml

check:
	ruff format --check .
	ruff check .
	mypy

format:
	ruff format .
	ruff check --fix .

test: check
	python -m pytest -n 2

matrix:
	python tests/matrix/run_matrix.py --markdown docs/compatibility.md

matrix-short:
	python tests/matrix/run_matrix.py --short

wheel:
	rm -rf build dist *.egg-info
	python -m build

demo:
	vacc-deploy demo --overwrite

yaml:
	vacc-deploy yaml --all --output yaml --build-in build_in
