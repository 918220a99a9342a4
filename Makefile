# make          builds .venv, runs the default benchmark, says which files to open
# make test     builds .venv, runs every test and check
# make clean    removes results and Snakemake's state; make distclean also the environment
# make lint     linters only;  make lock  writes the lock file anew from this environment

PYTHON ?= python3.11
CORES ?= $(shell nproc 2>/dev/null || echo 2)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := passive
export MKL_NUM_THREADS := 1
export PATH := $(BIN):$(PATH)

.PHONY: run test test-fast lint clean distclean lock bill

run: $(STAMP)
	@snakemake --cores $(CORES) --quiet rules || { \
	  echo; echo "The run did not end well. What could be made is there; the same command goes on from here."; \
	  test ! -f results/failed.txt || { echo "Failed cells:"; sed 's/^/  /' results/failed.txt; }; exit 1; }
	@echo
	@echo "Done. Open these:"
	@echo "  results/report.html                           the report: figures, tables, how to read them"
	@echo "  results/figures/sequential_jpeg.png           why a defense can look robust without being it"
	@echo "  results/tables/printed/defenses.md            what each defense costs, gains and keeps"
	@echo "  results/tables/metrics.parquet                every number with its interval (docs/results.md)"

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Windtunnel needs Python 3.11 or newer: 'make PYTHON=/path/to/python3'"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[test]'
	@# torchattacks pins a release of requests that no current package accepts and that it does not need at run time
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --no-deps torchattacks
	@# CompressAI pins numpy < 2 and needs it no more; it has wheels for some platforms only, and only its own tests want it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --only-binary :all: --no-deps \
	  compressai torch-geometric pytorch-msssim || echo "CompressAI has no wheel here: its defenses and tests are left out"
	@touch $(STAMP)

test: lint
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python -m pytest -x -m "not workflow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint --configfile config/tiny.yaml

bill: $(STAMP)
	@snakemake bill --quiet all

lock: $(STAMP)
	$(BIN)/python scripts/dev/write_lock.py

clean:
	rm -rf results .snakemake

distclean: clean
	rm -rf $(VENV) *.egg-info
