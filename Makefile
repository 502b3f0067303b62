# What one can do here: make demo | distill-demo | test | lint | format | sanitize | cross-aarch64 |
# instruction-counts | compile-gate | cuda-gate | pytest-spark | bench | clean
# On a machine with a GPU: make gpu, or its stages gpu-test | gpu-tune | gpu-bench | gpu-profile
#
# Each target sets up what it needs; a machine needs only python3 (3.11 or newer, with venv), a C++
# compiler and make. Everything lands in .venv/, build/ and .cache/. A second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check --no-input install
CXX_SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/cuda/*.cu csrc/tests/cuda/*.cpp \
	csrc/tests/cuda/*.h)
TRANSFORMERS4 := $(VENV)/transformers-4.57
TRITON36 := $(VENV)/triton-3.6.0
OPTIMUM := $(VENV)/optimum
SPARK := $(VENV)/spark
CUDA13 := $(VENV)/cuda-13.0.88
BUILT := $(VENV)/.built
TESTED := $(VENV)/.built-emulated

.PHONY: demo distill-demo test lint format sanitize sanitize-address sanitize-thread cross-aarch64 \
	instruction-counts compile-gate cuda-gate pytest pytest-kernels pytest-transformers4 \
	pytest-spark gpu gpu-build gpu-test gpu-tune gpu-bench gpu-profile bench optimum clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo $(BUILT)
	$(BIN)/python -m benchmarks.demo

# Small encoders from larger ones, on real sentences; some twenty minutes on two cores. With QUICK=1
# two, on little.
distill-demo: $(VENV)/.installed-distill-demo $(BUILT)
	$(BIN)/python -m benchmarks.distillation $(if $(QUICK),--quick)

test: lint sanitize cross-aarch64 instruction-counts compile-gate cuda-gate pytest-kernels \
	pytest-transformers4 pytest

# --- the environment ------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"make needs Python 3.11 or newer; this one is {sys.version.split()[0]} (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)

# .installed-<extra>: the project, editable, with that extra of pyproject.toml.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	rm -f $(BUILT) $(TESTED)
	$(PIP_INSTALL) -c constraints.txt setuptools cmake ninja pybind11
	$(if $(filter dev,$*),FASTDISTIL_CUDA=emulated) \
		$(PIP_INSTALL) -c constraints.txt --no-build-isolation -e ".[$*]"
	touch $@

# The extension, in place, one of two: as a user gets it (without a C++ compiler this says so, and the
# demo runs all the same); or with the CUDA kernels emulated, on tensors in the CPU's memory, so that
# their tests run on every machine, in the same way.
$(BUILT): CUDA :=
$(TESTED): CUDA := FASTDISTIL_CUDA=emulated
$(BUILT) $(TESTED): $(CXX_SOURCES) CMakeLists.txt csrc/emulation/CMakeLists.txt setup.py | $(BIN)/python
	rm -f $(BUILT) $(TESTED)
	$(CUDA) $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

$(TRANSFORMERS4)/.installed: requirements-transformers4.txt | $(BIN)/python
	rm -rf $(TRANSFORMERS4)
	$(PIP_INSTALL) --no-deps --target $(TRANSFORMERS4) -r $<
	touch $@

# --- checks ---------------------------------------------------------------------------------------

lint: $(VENV)/.installed-dev $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# The engine's own tests, compiled with the compiler's checks for memory, undefined behaviour, races;
# and those of the CUDA kernels on the emulation, all of it in one thread, where no two can race.
sanitize: sanitize-address sanitize-thread

sanitize-address: SANITIZERS := address,undefined
sanitize-address: CUDA_TESTS := ON
sanitize-thread: SANITIZERS := thread
sanitize-thread: CUDA_TESTS := OFF
# ThreadSanitizer of older compilers cannot live with the address randomisation of newer kernels.
sanitize-thread: RUN := $$(setarch "$$(uname -m)" -R true 2>/dev/null && echo setarch "$$(uname -m)" -R)
sanitize-address sanitize-thread: $(VENV)/.installed-dev
	$(BIN)/cmake -S . -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DFASTDISTIL_PYTHON=OFF -DFASTDISTIL_TESTS=ON -DFASTDISTIL_CUDA_TESTS=$(CUDA_TESTS) \
		-DFASTDISTIL_SANITIZE=$(SANITIZERS) --log-level=NOTICE
	$(BIN)/cmake --build build/$@
	$(RUN) build/$@/fastdistil_cpu_tests
	$(if $(filter ON,$(CUDA_TESTS)),build/$@/fastdistil_cuda_tests)

# The same tests for 64-bit ARM, where the portable kernels are all there is: compiled on any machine,
# run on such a CPU or in QEMU. A QEMU with plugins aborts as soon as a forked child starts threads,
# and one test does that; Debian's static build has no plugins. Without the CUDA kernels' tests: off
# x86-64 the emulation switches stacks with ucontext, which musl lacks.
ZIG_CMAKE = PATH="$(CURDIR)/$(BIN):$$PATH" ZIG_GLOBAL_CACHE_DIR="$(CURDIR)/.cache/zig" cmake
cross-aarch64: $(VENV)/.installed-dev
	$(ZIG_CMAKE) -S . -B build/$@ -G Ninja --toolchain csrc/toolchains/aarch64-linux.cmake \
		-DFASTDISTIL_PYTHON=OFF -DFASTDISTIL_TESTS=ON -DFASTDISTIL_CUDA_TESTS=OFF --log-level=NOTICE \
		-Wno-unused-cli
	$(ZIG_CMAKE) --build build/$@
	@tests=build/$@/fastdistil_cpu_tests; run=; lacks=; \
	if [ "$$(uname -sm)" = "Linux aarch64" ]; then :; \
	elif command -v qemu-aarch64-static >/dev/null; then run=qemu-aarch64-static; \
	elif ! command -v qemu-aarch64 >/dev/null; then lacks="there is no qemu-aarch64-static"; \
	elif qemu-aarch64 -h | grep -q -e -plugin; then lacks="this qemu-aarch64 has plugins"; \
	else run=qemu-aarch64; fi; \
	if [ -z "$$lacks" ]; then echo "$$run $$tests"; $$run $$tests; \
	else echo "aarch64: compiled, but NOT RUN: $$lacks (apt install qemu-user-static). CI runs it."; fi

# The instructions of a small model's forwards, beside those on record: no clock, so no noise. One
# compiler and one libc, so every machine counts the same. With UPDATE=1 the counts become the record.
instruction-counts: $(VENV)/.installed-dev
	$(ZIG_CMAKE) -S . -B build/$@ -G Ninja --toolchain csrc/toolchains/x86_64-linux-callgrind.cmake \
		-DFASTDISTIL_PYTHON=OFF -DFASTDISTIL_TESTS=ON -DFASTDISTIL_CUDA_TESTS=OFF --log-level=NOTICE \
		-Wno-unused-cli
	$(ZIG_CMAKE) --build build/$@ --target fastdistil_instruction_counts
	$(BIN)/python tests/instruction_counts.py build/$@/fastdistil_instruction_counts \
		$(if $(UPDATE),--update)

# The triton that GPU machines have today, beside the newest.
$(TRITON36)/.installed: | $(BIN)/python
	rm -rf $(TRITON36)
	$(PIP_INSTALL) --no-deps --target $(TRITON36) triton==3.6.0
	touch $@

# Every shipped launch setting, compiled for its GPU and its machine code looked at. No GPU needed.
compile-gate: $(VENV)/.installed-dev $(TRITON36)/.installed
	PYTHONPATH=$(CURDIR)/$(TRITON36) $(BIN)/python tests/compile_gate.py
	$(BIN)/python tests/compile_gate.py

# CUDA's compiler, without the rest of CUDA: one edition, so that every machine's gate says the same.
$(CUDA13)/.installed: | $(BIN)/python
	rm -rf $(CUDA13)
	$(PIP_INSTALL) --no-deps --target $(CUDA13) nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
		nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
	touch $@

# Every kernel in csrc/cuda, compiled for every GPU and its machine code looked at. No GPU needed.
cuda-gate: $(VENV)/.installed-dev $(CUDA13)/.installed
	$(BIN)/python tests/cuda_gate.py

# The GPU kernels and engine in Triton's interpreter.
pytest-kernels: $(VENV)/.installed-dev $(TESTED)
	TRITON_INTERPRET=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/gpu_kernels

pytest: $(VENV)/.installed-dev $(TESTED)
	$(BIN)/python -c 'from fastdistil import _C; assert _C.cuda.emulated'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

pytest-transformers4: $(VENV)/.installed-dev $(TESTED) $(TRANSFORMERS4)/.installed
	HF_HUB_OFFLINE=1 FASTDISTIL_TEST_TRANSFORMERS=4 PYTHONPATH=$(CURDIR)/$(TRANSFORMERS4) \
		$(BIN)/python -m pytest tests/test_kernels_package.py tests/test_drop_in*.py \
		tests/test_encoder_decoder.py tests/test_summarization.py tests/test_task_parity.py \
		tests/test_distill.py

# Spark is a download of 450 MB, so `make test` leaves it out. It needs a Java.
$(SPARK)/.installed: | $(BIN)/python
	rm -rf $(SPARK)
	$(PIP_INSTALL) --no-deps --target $(SPARK) pyspark==4.3.0 py4j==0.10.9.9
	touch $@

pytest-spark: $(VENV)/.installed-dev $(TESTED) $(SPARK)/.installed
	HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR)/$(SPARK) $(BIN)/python -m pytest tests/test_spark.py

# --- on a machine with a GPU ----------------------------------------------------------------------

# Everything a GPU has to prove, in nine minutes, with the python that is there: nothing is fetched or
# installed. Results go to benchmarks/results/<device>/; what is there already is not done again but
# with AGAIN=1. DRY=1 walks every stage on a tiny model in Triton's interpreter, without a GPU. In a
# copy without git, FASTDISTIL_COMMIT=... says which commit the results are of.
GPU_PYTHON ?= $(if $(DRY),$(BIN)/python,python3)
GPU_RUN = HF_HUB_OFFLINE=1 $(if $(DRY),TRITON_INTERPRET=1) $(GPU_PYTHON) -m benchmarks.gpu
GPU_FLAGS = $(if $(DRY),--dry) $(if $(AGAIN),--again) $(if $(OUT),--out $(OUT))

gpu: gpu-build
	$(GPU_RUN) all $(GPU_FLAGS)

gpu-test: gpu-build
	$(GPU_RUN) check $(GPU_FLAGS)

gpu-tune gpu-bench gpu-profile: gpu-%: gpu-build
	$(GPU_RUN) $* $(GPU_FLAGS)

# The extension, with CUDA kernels for the GPU that is there; without compilers Triton's part goes on
# alone.
gpu-build: $(if $(DRY),$(VENV)/.installed-dev $(TESTED))
	$(if $(DRY),,rm -f $(BUILT) $(TESTED))
	$(if $(DRY),,-$(GPU_PYTHON) setup.py --quiet build_ext --inplace)

# --- and the rest ---------------------------------------------------------------------------------

# Every suite, beside every engine that people use; under half an hour on two cores.
bench: $(VENV)/.installed-bench $(OPTIMUM)/.installed $(BUILT)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

# What sentence-transformers' onnx and openvino backends need, and fastembed: beside the rest, since
# they want older transformers than everything else.
optimum: $(OPTIMUM)/.installed
$(OPTIMUM)/.installed: requirements-optimum.txt | $(BIN)/python
	rm -rf $(OPTIMUM)
	$(PIP_INSTALL) --no-deps --target $(OPTIMUM) -r $<
	touch $@

clean:
	rm -rf build dist *.egg-info fastdistil/_C.* $(BUILT) $(TESTED)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
