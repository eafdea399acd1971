# The project's commands.  `make help` lists them; each makes the environment it needs.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# processes that share the GPU; compiling is what they spend their time on
GPU_JOBS ?= 8
# the GPU to predict for where there is none to measure on
GPU ?= h200
TUNE_ARGS ?=
BENCH ?= forward

BIN := $(VENV)/bin
READY := $(VENV)/.ssdgen-ready
HAVE_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
# with a GPU the newest torch and its own triton; without one the versions that the tests are known to pass with
CONSTRAINTS := $(if $(filter-out 0,$(HAVE_GPU)),,-c .ci/constraints-cpu.txt)

.DEFAULT_GOAL := help
.PHONY: help env browser tune test gpu quick lint format golden bench docs docs-links figures clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY)  ## make the environment in .venv

$(READY): pyproject.toml .ci/constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

tune: $(READY)  ## tune for the GPU that is here; with none, predict for GPU=h200
ifeq ($(CONSTRAINTS),)
	$(BIN)/ssdgen tune $(TUNE_ARGS)
else
	@echo "No GPU here: configurations for $(GPU) are predicted by compiling for it, not measured."
	$(BIN)/ssdgen tune --gpu $(GPU) $(TUNE_ARGS)
endif

test: lint  ## ruff, pyright and every test that needs no GPU
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not gpu and not interpreter"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m interpreter

gpu: $(READY)  ## the tests that need a CUDA GPU
	$(BIN)/python -m pytest -n $(GPU_JOBS) -m "gpu and not alone"
	$(BIN)/python -m pytest -n 0 -m "gpu and alone"

quick: $(READY)  ## the tests that take seconds
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow and not interpreter and not gpu"

# looked for by the names that tests/report/test_chromium.py knows
browser:  ## Debian's Chromium, if no Chromium is here: the tests look at the report with it
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v $$name >/dev/null && exit 0; \
	done; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core

lint: $(READY)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(READY)  ## rewrite the golden files after a change that was meant; read the diff
	$(BIN)/python -m pytest -n 0 --update-golden tests/golden

bench: $(READY)  ## a benchmark (needs a CUDA GPU): BENCH=forward, training, growth, ... (benchmarks/README.md); BENCH_ARGS="--quick"
	$(BIN)/python benchmarks/$(BENCH).py $(BENCH_ARGS)

# warnings are errors, and a link inside that leads nowhere is one
docs: $(READY)  ## the site, in build/site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html -d build/doctrees docs build/site
	@echo "build/site/index.html"

docs-links: $(READY)  ## follow the links to other sites (needs the network)
	$(BIN)/python -m sphinx --keep-going -q -b linkcheck -d build/doctrees docs build/links

figures: $(READY)  ## redraw the figures of docs/gallery.md from benchmarks/results
	$(BIN)/python benchmarks/figures.py

clean:  ## remove what was built, the environment too
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
