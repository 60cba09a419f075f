# Everything that one types here. The first target that needs it builds .venv with torch, the tools and this package.

TORCH ?= torch==2.13.0
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python3.10,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && command -v $(p))))
COMPILER := $(firstword $(foreach c,$(firstword $(CXX)) c++ g++ clang++,$(shell command -v $(c))))

VENV := .venv
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard cmake/*) $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP_SOURCES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SANITIZERS := $(if $(wildcard tests/kernels/CMakeLists.txt),asan tsan)
# One after the other. The sanitizers need two of the tools alone, so the first is built while torch is downloaded.
PARTS := 'setup cuda-tools $(firstword $(SANITIZERS:%=%-build))' $(SANITIZERS) cuda-library pytest

# Where this machine has no nvcc: that of PyPI, in $(VENV)/cuda.
NVCC := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
TOOLKIT := $(if $(NVCC),,$(VENV)/cuda)

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH):/usr/local/cuda/bin:$(CURDIR)/$(VENV)/cuda/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python compiles a module when it first reads it; of most that are installed here it never reads any.
export PIP_COMPILE := 0
# Threads that wait do not spin: on a busy machine spinning ones take the cores from those that work.
export OMP_WAIT_POLICY := passive
# Before what may start ninja by itself: it would look for the jobserver of make, which is closed to all but make.
NO_JOBSERVER := env -u MAKEFLAGS

.PHONY: help setup demo test pytest bench cuda cuda-library cuda-tools gpu lint clean $(SANITIZERS) $(SANITIZERS:%=%-build)

help:
	@echo "make demo    train an embedding model and a segmentation model on real data, in under four minutes"
	@echo "make test    the kernels' C++ tests under sanitizers, the CUDA kernels compiled, then every Python test; last, how"
	@echo "             long each part took"
	@echo "make bench   measure everything beside every installed library (benchmarks/README.md): rows, tables, pictures"
	@echo "make cuda    compile the CUDA kernels for every GPU from sm_80 on (no GPU needed) and check registers, spills"
	@echo "             and instructions; ARCHITECTURES=90-real for one"
	@echo "make gpu     on a machine with a GPU: build for it, test, look for bad memory and races, measure; ten minutes at most"
	@echo "make lint    ruff, mypy and clang-format, changing nothing"
	@echo "make setup   only the environment: .venv with torch, the tools and this package"
	@echo "make clean   remove what was built; .venv stays and is brought up to date by the next command"

demo: setup
	fastmine train embeddings
	fastmine train segmentation

test:
	@mkdir -p build && rm -f build/seconds
	@for part in $(PARTS); do \
		start=$$(date +%s); \
		$(MAKE) --no-print-directory -j 2 $$part || exit; \
		echo "$$(($$(date +%s) - start)) $$part" >> build/seconds; \
	done
	@awk '{ sum += $$1; printf "%6d s ", $$1; $$1 = ""; print } END { printf "%6d s  in all\n", sum }' build/seconds

pytest: setup
	FASTMINE_REQUIRE_NATIVE=1 $(NO_JOBSERVER) pytest -n 2 --junitxml=build/pytest.xml
	@sed -nE 's/.*<testsuite [^>]*errors="([0-9]+)" failures="([0-9]+)" skipped="([0-9]+)" tests="([0-9]+)".*/\1 \2 \3 \4/p' build/pytest.xml \
		| awk '{ print "tests: " $$4 - $$1 - $$2 - $$3 " passed, " $$1 + $$2 " failed, " $$3 " skipped" }'

# As users have it: threads wait as OpenMP decides.
bench: setup
	rm -f benchmarks/results/cpu.jsonl
	env -u OMP_WAIT_POLICY fastmine bench --peers --scaling --out benchmarks/results/cpu.jsonl --readme README.md --plot benchmarks/plots

cuda: cuda-library
	FASTMINE_REQUIRE_NATIVE=1 $(NO_JOBSERVER) pytest tests/test_cuda_binaries.py

cuda-library: setup cuda-tools
	cmake --preset cuda --log-level=WARNING $(ARCHITECTURES:%=-DFASTMINE_CUDA_ARCHITECTURES='%')
	cmake --build --preset cuda --parallel 2

# What reads the binary comes from PyPI: a toolkit may be nvcc alone.
cuda-tools: $(TOOLKIT) | $(READY)
	pip install --quiet nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm

# The version that registers and instructions were first read from. Its nvcc looks for its libraries in lib64, and CMake
# for libcudart.so.
$(VENV)/cuda: | $(READY)
	pip install --quiet $(foreach part,cuda-nvcc nvvm cuda-crt cuda-runtime cuda-cccl,'nvidia-$(part)==13.0.*')
	root=$$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13; \
	ln -sfn lib "$$root/lib64" && ln -sfn libcudart.so.13 "$$root/lib/libcudart.so" && ln -sfn "$$root" $@

# With what is installed there: such a machine may have no network.
gpu:
	"$(PYTHON)" -m benchmarks.gpu

$(SANITIZERS:%=%-build): %-build: $(TOOLS)
	cmake --preset $* --log-level=WARNING
	cmake --build --preset $* --parallel 2

# ThreadSanitizer's older runtimes cannot place their memory where the kernel randomises addresses widely.
$(SANITIZERS): %: %-build
	$$(setarch -R true 2>/dev/null && echo setarch -R) ctest --preset $@

lint: setup
	ruff check
	ruff format --check
	mypy
	clang-format --dry-run -Werror $(CPP_SOURCES)

clean:
	rm -rf build dist $(READY) $(TOOLS) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache python/fastmine/*.so
	find python tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

setup: $(READY)

$(TOOLS):
	@[ -n "$(PYTHON)" ] || { echo "fastmine needs Python >= 3.10 and found none. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@[ -n "$(COMPILER)" ] || { echo "fastmine needs a C++20 compiler and found none. Install g++ (Debian and Ubuntu: apt install g++), or name one: make CXX=/path/to/g++" >&2; exit 2; }
	@[ -x $(VENV)/bin/pip ] || "$(PYTHON)" -m venv $(VENV) || { echo "$(PYTHON) cannot create an environment (Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@$(VENV)/bin/python -m pip install --quiet 'pip>=23.1' 'cmake>=3.25' ninja
	@touch $@

# torch comes first: pip would otherwise choose the newest for itself. The build runs without isolation, so that the
# tools it used stay: an edited kernel is then rebuilt in seconds, here or when the package is next imported.
$(READY): $(BUILD_INPUTS) | $(TOOLS)
	@echo "Bringing $(VENV) up to date: $(TORCH), the tools, and the C++ core (the first time takes a minute or more)"
	@$(VENV)/bin/python -m pip install --quiet '$(TORCH)'
	@$(VENV)/bin/python -m pip install --quiet 'scikit-build-core>=0.11' 'pybind11>=2.13'
	@$(NO_JOBSERVER) $(VENV)/bin/python -m pip install --quiet --no-build-isolation --editable '.[train,plot,parquet,dev]' \
		-C build-dir=build/editable -C editable.rebuild=true -C editable.verbose=false
	@touch $@
