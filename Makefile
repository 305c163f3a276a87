# Needs only python3 (3.11 or later, with venv), make and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

PLUGIN := fqt_deploy/export/plugin/plugin.so
SITE = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
ORT_INCLUDE ?= /usr/include/onnxruntime

.PHONY: help env demo test lint onnx-plugin

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

env: $(STAMP)  ## create .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## compile an example for this CPU, train it on scikit-learn's digits, profile it
	$(BIN)/python -m tools.train_digits

test: $(STAMP)  ## run the test suite
	$(BIN)/python -m pytest

lint: $(STAMP)  ## ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

onnx-plugin: $(PLUGIN)  ## build the custom-op library for ONNX Runtime; headers: Debian's libonnxruntime-dev, or ORT_INCLUDE

$(PLUGIN): $(PLUGIN:plugin.so=fqt_onnxruntime.cc) $(STAMP)
	@test -f $(ORT_INCLUDE)/onnxruntime_cxx_api.h || { echo "no ONNX Runtime headers in $(ORT_INCLUDE): \
	install libonnxruntime-dev, or set ORT_INCLUDE to the headers of a release"; exit 1; }
	$(CXX) -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -Wall -Wextra -DORT_API_MANUAL_INIT \
	  -isystem $(ORT_INCLUDE) -isystem $(SITE)/tvm_ffi/include $< -o $@ \
	  -L$(SITE)/tvm/lib -L$(SITE)/tvm_ffi/lib -Wl,--no-as-needed -ltvm_runtime -ltvm_ffi '-Wl,-rpath,$$ORIGIN'
