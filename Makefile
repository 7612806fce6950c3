# PYTHON=…  an environment of yours, used as it is. Without it, .venv is made and filled.
# ONLY=…    only the tests and benchmarks of this room (pytest's -k).

SHELL := bash
.DEFAULT_GOAL := help

ifdef PYTHON
present := $(PYTHON)
export PATH := $(dir $(shell command -v $(PYTHON))):$(PATH)
else
present := python3
PYTHON := .venv/bin/python
environment := .venv/ready
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif

here = PYTHONPATH="$(CURDIR)" $(PYTHON)
select := $(if $(ONLY),-k '$(ONLY)')

# Kernels for the GPU at hand, or for a common one. A wheel holds them for every GPU on the list in CMakeLists.txt.
gpus = $(shell nvidia-smi >/dev/null 2>&1 && echo native || echo 90)
options = CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=$(gpus) $$CMAKE_ARGS"
site = NO_MKDOCS_2_WARNING=1 $(here) -m mkdocs --quiet build
build = $(options) $(PYTHON) setup.py --quiet build_ext --inplace

.PHONY: help
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: demo
demo: build  ## operators on a photograph: a picture, and times beside plain PyTorch
	$(here) -m toco_kernels demo

.PHONY: test
test: build  ## all tests, by two processes
	OMP_NUM_THREADS=1 $(here) -m pytest -n 2 --dist worksteal $(select)

.PHONY: bench
bench: build  ## all benchmarks
	$(here) -m pytest benchmarks $(select)

.PHONY: fuzz
fuzz: build  ## for a night: 10,000 drawn cases of every operator; goes on where it ended (OPTIONS='--shard 1/4')
	OMP_NUM_THREADS=1 $(here) tests/fuzz.py $(OPTIONS) $(if $(ONLY),--only $(ONLY))

.PHONY: asan
asan: $(environment)  ## CPU kernels under the address and undefined-behaviour sanitizers
	$(here) tests/sanitized.py $(OPTIONS) $(if $(ONLY),--only '$(ONLY)')

.PHONY: check
check: $(environment)  ## sources as ruff and clang-format want them, tables as measured and built, documentation without a warning
	@status=0; set -x; \
	$(PYTHON) -m ruff check . || status=1; \
	$(PYTHON) -m ruff format --check . || status=1; \
	find csrc python -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs clang-format --dry-run -Werror || status=1; \
	$(here) benchmarks/tables.py --check || status=1; \
	$(PYTHON) docs/support.py --check || status=1; \
	$(site) || status=1; \
	exit $$status

.PHONY: docs
docs: $(environment)  ## the documentation, in build/site
	$(site)

.PHONY: wheel
wheel: $(environment)  ## wheels in dist/: manylinux for this Python (or PYTHONS='python3.10 …'), and one of pure Python
	$(PYTHON) .ci/wheels.py $(PYTHONS)

.PHONY: release-test
release-test:  ## try the wheels in dist/ in fresh environments, under the oldest torch and the newest
	$(PYTHON) .ci/release_test.py $(OPTIONS)

.PHONY: clean
clean:  ## remove everything built; .venv stays
	rm -rf build dist *.egg-info toco_kernels/*.so toco_kernels/_build.json .pytest_cache .ruff_cache .benchmarks
	find toco_kernels tests benchmarks -name __pycache__ -prune -exec rm -r {} +

# On a machine with a GPU, in the environment that is there: no network, nothing installed. Tests are those that need
# the GPU, by several processes where pytest-xdist is there: what each waits for is mostly Triton's compiler. Old kernels
# are not measured, so a failed build ends it; failed tests do not. Tests that hang leave time for the benchmarks, which
# write every row as they go.
.PHONY: gpu gpu-full
gpu gpu-full: PYTHON := $(present)
gpu gpu-full: several = $(shell $(PYTHON) -c 'import xdist' 2>/dev/null && echo '-n 8 --dist worksteal')
gpu: decisive := -m decisive
gpu: test_seconds := 240
gpu: seconds := 520
gpu:  ## on a GPU machine: build, tests, decisive benchmarks; nine minutes
gpu-full:  ## on a GPU machine: build, tests, all benchmarks
gpu gpu-full:
	@SECONDS=0; failed=0; summary="$@:"; \
	try() { \
	  local name=$$1 limit=$$2 start=$$SECONDS outcome=passed; shift 2; echo "$$*"; \
	  timeout --signal=INT --kill-after=10 $$limit "$$@" || { outcome=FAILED; failed=1; }; \
	  summary+=" $$name $$outcome ($$((SECONDS - start)) s)"; \
	}; \
	export PYTHONPATH="$(CURDIR)"; \
	try build 0 env $(build); \
	if [ $$failed = 0 ]; then \
	  try tests $(or $(test_seconds),0) $(PYTHON) -m pytest -m 'gpu and not slow' $(several) $(select); \
	  try benchmarks $(if $(seconds),$$(($(seconds) - SECONDS)),0) $(PYTHON) -m pytest benchmarks $(decisive) $(select); \
	fi; \
	echo "$$summary"; exit $$failed

# Every kernel on small inputs under compute-sanitizer. Torch's cache of memory would hide what is read beside a tensor.
sanitized = $(PYTHON) -m pytest -q tests/test_contract.py -k 'cuda and float32 and (values or edges) $(if $(ONLY),and $(ONLY))'
.PHONY: gpu-sanitize
gpu-sanitize: PYTHON := $(present)
gpu-sanitize:  ## on a GPU machine: memory and races of every kernel, by compute-sanitizer
	@export PYTHONPATH="$(CURDIR)" PYTORCH_NO_CUDA_MEMORY_CACHING=1; status=0; \
	for tool in memcheck racecheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all $(sanitized) || status=1; \
	done; exit $$status

.PHONY: gpu-profile
gpu-profile: PYTHON := $(present)
gpu-profile:  ## where the time of a training step goes, published and ours: benchmarks/results/<machine>-step.txt
	PYTHONPATH="$(CURDIR)" $(PYTHON) benchmarks/profile_step.py

.PHONY: build
build: $(environment)
	@$(build)

# torch first: the kernels are compiled for it, by tools that then must be there too.
.venv/ready: pyproject.toml
	[ -x $(PYTHON) ] || $(present) -m venv .venv
	$(PYTHON) -m pip install --quiet 'torch>=2.11' torchvision
	$(PYTHON) -m pip install --quiet setuptools wheel cmake ninja pybind11
	$(options) $(PYTHON) -m pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@
