# Every target makes .venv and installs rsseglab on first use.
PYTHON ?= python3
DATA ?= synthetic
BIN := .venv/bin
INSTALLED := .venv/.installed

# Two pytest workers on two cores: one thread each; who is done takes tests from the other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: quickstart test test-slow notebooks book book-check pages lab lint format picture clean

quickstart: $(INSTALLED)  ## train a small network and label whole scenes: minutes on a laptop
	$(BIN)/rsseglab quickstart --data $(DATA)

test: $(INSTALLED)  ## all tests but the long ones, notebooks included
	$(TEST)
	$(MAKE) notebooks

test-slow: $(INSTALLED)  ## the long and deep tests
	$(TEST) -m slow

notebooks: $(INSTALLED)  ## run each notebook with its small test parameters
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts= -q -n auto --maxprocesses 4 --nbmake --nbmake-timeout=300 notebooks

book: .venv/.book  ## the book, all notebooks executed: book/_build/html/index.html; a quarter of an hour, later seconds
	$(BIN)/python book/offline.py
	OMP_NUM_THREADS=1 $(BIN)/python book/execute.py
	OMP_NUM_THREADS=2 $(BIN)/jupyter-book build book -W --keep-going

book-check: book  ## open every page in Chromium: outside requests, errors, links, accessibility
	$(BIN)/python -m pytest -o addopts= -q --import-mode=importlib tests/book/test_site.py

pages: $(INSTALLED)  ## the book's pages that are made of run records
	$(BIN)/python -m rsseglab.experiments.page book/records/compare > book/comparison.md
	for paper in $(notdir $(wildcard book/records/ablate/*)); do \
		$(BIN)/python -m rsseglab.experiments.ablate book/records/ablate/$$paper > book/ablation_$$paper.md; done
	$(BIN)/rsseglab tables --format markdown --out book/tables.md

lab: $(INSTALLED)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict -p rsseglab.scenes -p rsseglab.spatial

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .


picture: quickstart  ## the README's picture and the run record behind it
	mkdir -p book/images book/records
	cp outputs/quickstart/synthetic/comparison.png book/images/quickstart.png
	cp outputs/quickstart/synthetic/record.json book/records/quickstart_synthetic.json

clean:
	rm -rf .venv outputs runs build dist

.venv/.book: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[book]'
	touch .venv/.book

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rsseglab needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(INSTALLED)
