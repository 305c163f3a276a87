# Needs only python3 (3.11 or later, with venv), make and a C and C++ compiler (gcc, g++).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

ARCH ?= $(shell uname -m)
PLUGIN := fqt_deploy/export/plugin/plugin.so
SITE = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
ORT_INCLUDE ?= /usr/include/onnxruntime

.PHONY: help env demo c-api cross-env js-env digits-page onnx-plugin test test-all lint

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

env: $(STAMP)  ## create .venv with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,cuda]'
	@touch $@

demo: $(STAMP)  ## compile an example for this CPU, train it on scikit-learn's digits, profile it
	$(BIN)/python -m tools.train_digits

c-api: $(STAMP)  ## build the C interface into build/c-api-ARCH; ARCH=aarch64 for another kind of machine
	$(BIN)/python -m fqt_deploy.packaging.build_c_api build/c-api-$(ARCH) --arch $(ARCH)

cross-env: $(STAMP)  ## what compiling and testing for aarch64 needs on a PC: Debian packages (as root), TVM's libraries
	command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64-static || \
		(apt-get update && apt-get install -y --no-install-recommends g++-aarch64-linux-gnu qemu-user-static)
	$(BIN)/fqt-compile --fetch-runtime aarch64

js-env:  ## what testing the JavaScript package needs, from the npm registry: ONNX Runtime for Node and browsers, puppeteer-core, koffi
	cd js && npm install

digits-page: $(STAMP) js-env  ## serve a page that trains the digits example in the browser
	$(BIN)/python -m tools.digits_page

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(STAMP)  ## run the tests: every part, a few cases of each (minutes)
	$(PYTEST)

test-all: $(STAMP)  ## run the tests with all cases: before a release, after a change of codegen or a target
	$(PYTEST) -m "not slow"

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
