# make study | make test | make lab. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: study test test-slow test-browser lab book lint clean

study: .venv/installed ## the main job: train and compare on the generated dataset, write a report
	$(BIN)/bidir study

test: .venv/installed-dev ## the tests, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-dev ## the tests that take minutes; ONLY="tests/study ..." some of them
	$(BIN)/python -m pytest -m slow $(ONLY)

book: .venv/installed-book ## docs, walkthroughs and figures, executed, as a site: docs/_build/html/docs/index.html
	mkdir -p docs/_build/source # a copy: its notebooks draw into their results/
	tar -c --exclude=./.venv --exclude=./.git --exclude=./docs/_build . | tar -x -C docs/_build/source
	OMP_NUM_THREADS=2 $(BIN)/sphinx-build -q -W --keep-going -c docs docs/_build/source docs/_build/html

test-browser: .venv/installed-dev ## the notebooks in JupyterLab, in the system's Chromium
	$(BIN)/python -m pytest -m browser

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

lab: .venv/installed ## JupyterLab at the project's root, opened on the starting page
	@test "$$(id -u)" != 0 || echo "You are root, as in a container: JupyterLab is told to run all the same (--allow-root)."
	env JUPYTER_CONFIG_PATH=.jupyter $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) \
		--ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bidir needs Python 3.11 or later; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib || true # on all cores; pip takes one

.venv/installed: pyproject.toml | .venv/bin/python
	$(PIP) -e .
	$(COMPILE)
	touch $@

.venv/installed-dev .venv/installed-book: pyproject.toml | .venv/bin/python
	$(PIP) -e ".[$(subst .venv/installed-,,$@)]"
	$(COMPILE)
	touch .venv/installed $@

clean:
	rm -rf .venv results/study docs/_build
