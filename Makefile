# Everything runs inside .venv, which the first target that needs it creates.
# Another interpreter: make PYTHON=python3.12 test
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
VENV ?= .venv
PY := $(VENV)/bin/python
# Builds of torch for processors only, a tenth of the others' size.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help install demo test test-slow lint bench agreement results clean

help:
	@echo "make install    make $(VENV) and install the package and its test tools in it"
	@echo "make demo       train, attack, shrink and export on the embedded digits (minutes)"
	@echo "make test       ruff, then the fast tests and the doctests"
	@echo "make test-slow  the tests marked slow"
	@echo "make lint       ruff alone"
	@echo "make bench      time ratios against the floor, cleverhans, ART and foolbox"
	@echo "make agreement  compare the attacks' strength with foolbox, ART and torchattacks"
	@echo "make results    rebuild docs/results and README's table from cards and measurements"
	@echo "make clean      remove $(VENV) and caches (saved_models/ stays)"

# A stamp that is newer than setup.py says that the environment is complete.
$(VENV)/.installed: setup.py
	@test -n "$(PYTHON)" || { echo "tfrobust needs Python 3.11, 3.12 or 3.13 (those have TensorFlow wheels); none found. Name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tfrobust needs Python >= 3.11. Received: PYTHON=$(PYTHON), $$($(PYTHON) --version 2>&1)"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[test]"
	@touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable ".[peers]"
	@touch $@

$(VENV)/.torch: $(VENV)/.peers
	$(PY) -m pip install --quiet --extra-index-url $(TORCH_INDEX) --editable ".[torch]"
	@touch $@

install: $(VENV)/.installed

demo: install
	$(PY) -m recipes.quickstart

lint: install
	$(PY) -m ruff check .

# One process a core, one thread each: whole files go to one process, which keeps its graphs.
test: lint
	TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadscope

test-slow: install
	$(PY) -m pytest -q -m slow tests

results: install
	$(PY) -m recipes.results
	$(PY) -m bench.page

bench: $(VENV)/.peers
	$(PY) -m bench.run
	$(PY) -m bench.scale

agreement: $(VENV)/.torch
	$(PY) -m bench.agreement

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
