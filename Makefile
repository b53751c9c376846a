# make demo       prepare data, train, evaluate with missing fields (DATA=FOLDER: the files of MovieLens-100K)
# make test       run all tests
# make check      check lint, format and types
# make bench      run all programs in benchmarks/ (ONLY="steps scaling": only these), print one table, write benchmarks/results/
# make evidence   compare all variants and rivals on five data sets (DATA=FOLDER with movielens-100k/ and adult/), write docs/evidence.md
# make gpu-pack   pack libraries for a GPU machine without a network into .gpu/, see docs/gpu-day.md
# make gpu-day    run all checks that need a GPU (ONLY="turns uvm": only these parts; ANY_MACHINE=1: small versions, also on a CPU)
#
# CUDA=1 installs the CUDA build of FBGEMM, and later calls keep it; CUDA=0 installs the CPU build again.
# TORCH_INDEX=URL installs torch from that index, for a CPU build or another CUDA build.
PYTHON ?= python3
VENV ?= .venv
CUDA ?=
TORCH_INDEX ?=
DATA ?=
DEMO ?= demo
ONLY ?=
ANY_MACHINE ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The FBGEMM build: selected by CUDA, else the installed build, else the CPU build.
CPU_BUILD := $(if $(CUDA),$(filter 0,$(CUDA)),$(if $(wildcard $(VENV)/installed-fbgemm-gpu),,1))
FBGEMM := $(if $(CPU_BUILD),fbgemm-gpu-cpu,fbgemm-gpu)
INSTALLED := $(VENV)/installed-$(FBGEMM)

.PHONY: install demo test check bench evidence gpu-pack gpu-day
install: $(INSTALLED)

# torchrec is installed without dependencies: one of them is the CUDA build of FBGEMM, which would overwrite the CPU build.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/installed-*
	$(BIN)/python -m pip uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu 2>/dev/null
	$(PIP) torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) -r requirements.txt $(FBGEMM)==1.8.0
	$(PIP) --no-deps torchrec==1.8.0
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/asymdiffrec prepare $(if $(DATA),movielens-100k $(DEMO)/data --input $(DATA),synthetic $(DEMO)/data)
	$(BIN)/asymdiffrec train $(DEMO)/data/job.yaml --run $(DEMO)/base --set diffusion.method=base
	$(BIN)/asymdiffrec train $(DEMO)/data/job.yaml --run $(DEMO)/asymdiff
	$(BIN)/asymdiffrec evaluate $(DEMO)/base --missing 0,0.1,0.3,0.5
	$(BIN)/asymdiffrec evaluate $(DEMO)/asymdiff --missing 0,0.1,0.3,0.5

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(ONLY)

evidence: $(INSTALLED)
	$(BIN)/python -m benchmarks.evidence $(if $(DATA),--data $(DATA)) $(if $(ONLY),--only $(ONLY))
	$(BIN)/python -m benchmarks.evidence --report

gpu-pack: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu.pack

# The GPU machine has no environment of the project. $(PYTHON) needs only torch; the other packages are unpacked from .gpu/.
gpu-day:
	$(PYTHON) -m benchmarks.gpu.day $(ONLY) $(if $(ANY_MACHINE),--any-machine)
