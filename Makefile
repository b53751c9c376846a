# make demo    prepare data, train, evaluate with features missing (DATA=FOLDER: MovieLens-100K's own files)
# make test    the whole test suite
# make check   lint, format check and types
# make bench   every program in benchmarks/ (ONLY="steps scaling": those), one table, and results/ written anew
#
# CUDA=1 installs FBGEMM's CUDA build, and later calls keep to it; CUDA=0 goes back to the CPU build.
# TORCH_INDEX=URL takes torch from that index, for a CPU-only or another CUDA build of it.
# make evidence   every variant and rival on five data sets (DATA=FOLDER with movielens-100k/ and adult/), then docs/evidence.md
PYTHON ?= python3
VENV ?= .venv
CUDA ?=
TORCH_INDEX ?=
DATA ?=
DEMO ?= demo
ONLY ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The build of FBGEMM that is asked for, or else the one that is installed, or else the CPU build.
CPU_BUILD := $(if $(CUDA),$(filter 0,$(CUDA)),$(if $(wildcard $(VENV)/installed-fbgemm-gpu),,1))
FBGEMM := $(if $(CPU_BUILD),fbgemm-gpu-cpu,fbgemm-gpu)
INSTALLED := $(VENV)/installed-$(FBGEMM)

.PHONY: install demo test check bench evidence
install: $(INSTALLED)

# torchrec's own metadata asks for the CUDA build of FBGEMM, which overwrites the CPU build: so it is installed without dependencies.
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
