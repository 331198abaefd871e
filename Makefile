.PHONY: check format test wheel demo yaml

check:
	ruff format --check .
	ruff check .
	mypy

format:
	ruff format .
	ruff check --fix .

test: check
	python -m pytest -n 2

wheel:
	rm -rf build dist *.egg-info
	python -m build

demo:
	vacc-deploy demo --overwrite

yaml:
	vacc-deploy yaml --all --output yaml --build-in build_in
