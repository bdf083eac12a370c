# `make quickstart` and `make test` work on a clean clone with Python >= 3.10 and a C++17 compiler.
PYTHON ?= python3
VENV   ?= .venv
RUN    ?= runs/quickstart
PYTEST ?=
# As many tests at a time as cores, at most four; 0: one after the other, in one process.
WORKERS ?= logical
CLANG   ?= clang++
LOWEST_PYTHON ?= python3.10
CONSTRAINTS ?= constraints.txt
BUILD   ?= build/dev
FUZZ_SECONDS ?= 60

BIN     := $(VENV)/bin
SOURCES := pyproject.toml $(CONSTRAINTS) $(shell find src native CMakeLists.txt -type f -not -name '*.pyc' -not -name '*.so' 2>/dev/null)
NATIVE  := $(shell find native -name third_party -prune -o \( -name '*.cpp' -o -name '*.h' \) -print 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-lowest check docs format native wasm fuzz tsan clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.train  ## train, pack and run a one-bit vision transformer on scanned digits
	$(BIN)/gsb-vit quickstart --out $(RUN)

test: $(VENV)/.dev native  ## run all tests (choose some with PYTEST='tests/whole/test_cli.py -k bench')
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal $(PYTEST)

test-lowest:  ## run all tests on the lowest versions that pyproject.toml allows, with LOWEST_PYTHON
	$(MAKE) test VENV=build/lowest-venv BUILD=build/lowest PYTHON=$(LOWEST_PYTHON) CONSTRAINTS=constraints-lowest.txt

check: $(VENV)/.dev  ## lint, check formats and types
	$(BIN)/ruff check src tests benchmarks native
	$(BIN)/ruff format --check src tests benchmarks native
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

docs: build/docs-venv/.installed  ## build the documentation into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath build/docs-venv/bin):$$PATH" build/docs-venv/bin/mkdocs build --strict --quiet

format: $(VENV)/.dev  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix src tests benchmarks native
	$(BIN)/ruff format src tests benchmarks native
	$(BIN)/clang-format -i $(NATIVE)

native: $(VENV)/.dev  ## build the extension into src/gsb_vit, for PYTHONPATH=src
	$(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(BIN))/python \
		-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)"
	$(BIN)/cmake --build $(BUILD)

wasm: $(VENV)/.dev  ## build the WebAssembly module into src/gsb_vit/app, for gsb-vit app (cmake/wasm32-wasi.cmake says what it needs)
	$(BIN)/cmake --preset wasm -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build --preset wasm
	cp build/wasm/gsb_vit.wasm src/gsb_vit/app/gsb_vit.wasm

fuzz: $(VENV)/.dev  ## fuzz the model reader with the forward pass, and the resizing of pictures, each for FUZZ_SECONDS; what fails lies in build/fuzz
	$(BIN)/cmake -S . -B build/fuzz/build -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCMAKE_CXX_COMPILER=$(CLANG) \
		-DGSB_VIT_PYTHON=OFF -DGSB_VIT_FUZZ=ON -DGSB_VIT_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELEASE=-O2
	$(BIN)/cmake --build build/fuzz/build --target model_fuzzer picture_fuzzer
	PYTHONPATH=src $(BIN)/python native/fuzz/seeds.py build/fuzz/seeds
	mkdir -p build/fuzz/corpus build/fuzz/pictures
	ASAN_OPTIONS=malloc_context_size=2:quarantine_size_mb=16 \
		build/fuzz/build/native/fuzz/model_fuzzer -artifact_prefix=build/fuzz/ -dict=native/fuzz/json.dict -max_len=30000 \
		-len_control=0 -timeout=20 -malloc_limit_mb=1000 -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 \
		build/fuzz/corpus build/fuzz/seeds
	build/fuzz/build/native/fuzz/picture_fuzzer -artifact_prefix=build/fuzz/ -max_len=1000 -len_control=0 -timeout=20 \
		-malloc_limit_mb=1000 -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 build/fuzz/pictures

tsan:  ## run the native tests of threads and of whole models under ThreadSanitizer
	$(MAKE) test PYTEST="tests/native/test_sanitizers.py -k thread"

clean:  ## remove what the targets above made, except the runs
	rm -rf $(VENV) build src/gsb_vit/*.so

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: name a newer one, as in 'make PYTHON=python3.12 $(MAKECMDGOALS)'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(BIN)/python $(SOURCES)
	@echo "installing the package and PyTorch into $(VENV); this takes some minutes"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) '.[train]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "installing the package, PyTorch and the tools into $(VENV); this takes some minutes"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) '.[train,dev]'
	@touch $@

# The site's tools need neither PyTorch nor the package: names and docstrings are read from the sources.
build/docs-venv/.installed: pyproject.toml
	$(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/python -m pip install --quiet \
		$$(sed -n 's/^docs = \[\(.*\)\]$$/\1/p' pyproject.toml | sed 's/", "/ /g; s/"//g')
	@touch $@
