# make study | make test | make lab. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: study test test-slow lab lint clean

study: .venv/installed ## the main job: train and compare on the generated dataset, write a report
	$(BIN)/bidir study

test: .venv/installed-dev ## the tests, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/installed-dev ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

lab: .venv/installed ## JupyterLab with the project's kernel
	$(BIN)/jupyter lab notebooks

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bidir needs Python 3.11 or later; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf .venv results/study
