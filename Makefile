# Every target sets up what it needs: a machine has to have nothing but Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CODE := spec fast conformance benchmarks examples tools src/twofold setup.py

export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs serve site browser wheel budgets museum examples bench evidence readme gpu clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

$(READY): pyproject.toml setup.py tools/set_up.py
	$(PYTHON) tools/set_up.py $(VENV)
	@touch $@

demo: $(READY) ## a tour: speculative decoding on a real text, measured, and proved to lose nothing
	$(BIN)/twofold demo

test: $(READY) ## the whole conformance suite
	$(BIN)/twofold check --profile ci

lint: $(READY) ## style, and who may import whom
	$(BIN)/ruff check $(wildcard $(CODE))

types: $(READY) ## static types
	$(BIN)/mypy

docs: $(READY) ## build the site into site/, and fail on anything broken
	$(BIN)/mkdocs build --strict

serve: $(READY) ## the site at http://127.0.0.1:8000, rebuilt as files change
	$(BIN)/mkdocs serve

site: docs ## run the examples of the pages, and see the build notice what authors get wrong
	$(BIN)/python tools/snippets.py
	$(BIN)/python -m pytest -q -p no:cacheprovider tools/test_site.py

browser: docs ## open every page of the site in a headless browser
	$(BIN)/python tools/browser_test.py

wheel: $(READY) ## build the wheel and run the suite from it, away from the checkout
	tools/test_wheel.sh $(BIN)/python

budgets: $(READY) ## compile every kernel ahead of time, and hold it to its budget of registers and shared memory
	$(BIN)/python -m twofold.conformance.compile_report --check

museum: $(READY) ## plant every known bug, and see the suite catch it
	$(BIN)/twofold bugs

examples: $(READY) ## small drafters trained for a small target, in two minutes; a text read by one process and written by another
	$(BIN)/python examples/train_drafters.py --quick --device cpu --folder $$(mktemp -d)
	$(BIN)/python examples/disaggregated.py

bench: $(READY) ## measure speed on this machine
	$(BIN)/twofold bench

evidence: $(READY) ## measure anew what the pages show: error over bound, and the kill matrix
	mkdir -p docs/evidence
	$(BIN)/twofold check --profile ci --json > docs/evidence/check.json.new && mv docs/evidence/check.json.new docs/evidence/check.json
	$(BIN)/twofold bugs --matrix --json > docs/evidence/bugs.json.new && mv docs/evidence/bugs.json.new docs/evidence/bugs.json
	$(BIN)/twofold bugs --prove --json > docs/evidence/proofs.json.new && mv docs/evidence/proofs.json.new docs/evidence/proofs.json

readme: $(READY) ## write the generated part of README.md anew
	$(BIN)/python tools/readme.py

# A machine with a GPU has its own PyTorch and Triton, so nothing is installed there.
gpu: ## on a machine with a GPU, with its own Python: the suite, determinism, CUDA graphs, benchmarks
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu $(if $(OUT),--output "$(OUT)")

clean: ## remove what was built
	rm -rf $(VENV) site dist build
