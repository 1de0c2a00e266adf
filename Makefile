# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BUNDLE := build/demo-btp
SAMPLE := secateur/demo/samples
QUICK := $(addprefix tests/,bundle checkpoints/test_chat_template.py decoder profiling selection engines/test_trtexec.py \
	engines/test_limits.py engines/test_version.py test_plugins.py test_structure.py)

.PHONY: demo quick test check test-all fuzz matrix table docs clean

demo: $(INSTALLED)  ## calibrate, export, then ask the bundle a question
	$(BIN)/python export.py --method btp --out $(BUNDLE) --force
	$(BIN)/secateur run $(BUNDLE) --repeat 5 --image $(SAMPLE)/scene_1.png --prompt "what color is the five ?"

quick: $(INSTALLED)  ## the fast tests, for the inner loop
	$(BIN)/pytest -q -m "not slow and not bundle" -k "not onnx" $(QUICK)

test: check  ## lint, types and the default tests
	$(BIN)/pytest

check: $(INSTALLED)  ## lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test-all: check  ## the slow tests too
	$(BIN)/pytest -m ""

fuzz: $(INSTALLED)  ## the property tests on other examples than last time
	$(BIN)/pytest -m "hypothesis and not slow" --hypothesis-profile=fuzz

matrix: $(INSTALLED)  ## every family with every method (half an hour), and docs/matrix.md
	$(BIN)/pytest -m slow --dist load tests/test_matrix.py
	$(BIN)/python -m tests.matrix

table: $(INSTALLED)  ## update the README's table of plug-ins, the picture of the packages and the table of the lint
	$(BIN)/python -m tests.table
	$(BIN)/python -m tests.architecture
	$(BIN)/python -m tests.export.nvidia

docs: table  ## build the site into build/site; a broken link is an error
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist *.egg-info

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[export,dev]"
	touch $@
