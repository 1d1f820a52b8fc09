# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED = 0

.PHONY: demo test lint types imports unit docs leaderboard soak fuzz format proto lock hospital-wheel sbom clean

demo: $(VENV)/.installed
	$(BIN)/wardround simulate

test: lint types imports unit

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed
	$(BIN)/mypy

imports: $(VENV)/.installed
	$(BIN)/lint-imports

unit: $(VENV)/.installed
	$(BIN)/pytest -q -n 3 --dist worksteal

# `unit` kills 40 processes in the middle of their rounds; this kills 1,000, and draws 1,000 examples where `unit` draws 40.
soak: $(VENV)/.installed
	WARDROUND_SOAK=1000 $(BIN)/pytest -q -s tests/soak tests/reference/test_accounting_schedules.py
	$(BIN)/pytest -q --hypothesis-profile=thorough tests/hostile/test_agreements.py tests/client/privacy tests/shared

# Ten thousand wrong files: no end, no hang, no picture that dcmtk (Debian: dcmtk) shows otherwise. `unit` takes in 300.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: $(VENV)/.installed
	$(BIN)/python client/wardround_client/service/_proto/generate.py

# The documentation as a site in site/, with the reference generated from the code.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# docs/leaderboard.md: what is missing of it, hours for all of it. WARDROUND_DATA names the data; OPTIONS="--set heart".
leaderboard: $(VENV)/.installed
	$(BIN)/python benchmarks/leaderboard.py $(OPTIONS)

# constraints.txt and deploy/hospital/requirements.txt anew; UPGRADE=1 takes the newest versions.
lock: $(VENV)/.installed
	PATH=$(BIN):$$PATH $(BIN)/python tools/lock.py

# What a hospital installs: the library and its own program, without the coordinator's or the simulation's.
hospital-wheel: $(VENV)/.installed
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist ./deploy/hospital

# What is in it, as CycloneDX: every dependency that a hospital installs, with its hashes.
sbom: $(VENV)/.installed
	mkdir -p dist
	$(BIN)/uvx --from cyclonedx-bom==7.5.0 cyclonedx-py requirements deploy/hospital/requirements.txt \
		--pyproject deploy/hospital/pyproject.toml --output-reproducible --of JSON -o dist/wardround-hospital.cdx.json

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("wardround needs Python >= 3.11; try: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) site dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache simulations
