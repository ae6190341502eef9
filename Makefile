# The two commands of the README, and what they are made of. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

LOWEST := .venv-lowest

# In the order of tests/conftest.py, the longest first. Without restarts, since xdist waits for ever for the tests of a
# worker that crashed.
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: quickstart test test-lowest lint install install-test clean

quickstart: install ## set up, train the offline default, test its checkpoint
	$(BIN)/hps fit --config quickstart.yaml
	$(BIN)/hps test --ckpt_path best

test: install-test ## set up and pass the tests
	$(BIN)/pytest $(TWO_PROCESSES)

# What takes no training, in an environment of its own with the lowest versions that setup.cfg claims, which have no
# wheels for a Python newer than 3.12; they warn of what has been deprecated since.
test-lowest: $(LOWEST)/.installed ## the same with the oldest dependencies
	$(LOWEST)/bin/pytest $(TWO_PROCESSES) -m "not train and not cifar and not board" -o filterwarnings=default

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(VENV)/.installed-digits

install-test: $(VENV)/.installed-test

# One mark for each extra; a change of the dependencies installs again.
$(VENV)/.installed-%: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

$(LOWEST)/.installed: setup.cfg pyproject.toml tests/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[test]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "hps_lightning needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .ruff_cache
