# Everything a newcomer needs: `make demo` (or `make first-look`), `make test`. Each sets up by itself; the environment is remade only when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: lint mypy pyright bench-mil bench-npu bench-npu-truth bench-peers bench-scale docs first-look fuzz gpu-setup setup demo test test-slow check format mil-conformance clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) -e '.[dev]'
	# pip compiles with one processor. Some packages hold templates that are not Python.
	PYTHONWARNINGS=ignore $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(READY)

demo: $(READY)
	$(BIN)/f2i demo --out demo-out

# The demo for one target, in one precision.
first-look: $(READY)
	$(BIN)/f2i demo --target tflite --precision fp16 --out first-look

# Two processes: each may export, which takes two to three gigabytes.
WORKERS ?= 2
test: $(READY)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'not slow' -n $(WORKERS) --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: lint mypy pyright docs

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

mypy: $(READY)
	$(BIN)/mypy

pyright: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, into site/: a broken link is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

mil-conformance: $(READY)
	$(BIN)/python -m f2i_runtime.mil.conformance.harness --sample 2 --minutes 25 --keep demo-out/conformance

bench-mil: $(READY)
	$(BIN)/f2i export mobile --target coreml --precision fp16 --out demo-out/mobile-coreml
	$(BIN)/python -m f2i_bench.suites.mil_cost demo-out/mobile-coreml

bench-peers: $(READY)
	$(BIN)/f2i export nano --target executorch,tflite --precision fp32 --out demo-out/nano-fp32
	$(BIN)/python -m f2i_bench.suites.peers demo-out/nano-fp32

# Qualcomm's estimates for Snapdragon's NPU; Linux on x86-64 with Python 3.11 or later.
bench-npu: $(READY)
	$(BIN)/python -m f2i_bench.suites.npu_peers

bench-npu-truth: $(READY)
	$(BIN)/python -m f2i_bench.suites.estimate_truth

# Software drivers for LiteRT's GPU delegate where this machine has no GPU; the first `--accelerator gpu` does the same.
gpu-setup: $(READY)
	$(BIN)/python -m f2i_runtime.gpu.drivers

fuzz: $(READY)
	$(BIN)/python tests/helpers/fuzz.py --photos 10000 --manifests 1000

# Twenty minutes on one core; SIZES=3,12 for a quick one.
SIZES ?= 12,50,200
bench-scale: $(READY)
	test -f demo-out/bundle/manifest.json || $(BIN)/f2i demo --out demo-out
	$(BIN)/python -m f2i_bench.suites.scale demo-out/bundle --target tflite --precision w8a8 --sizes $(SIZES)

clean:
	rm -rf $(VENV) demo-out first-look build dist site
