# SPDX-License-Identifier: Apache-2.0
# On a fresh Debian 12 machine `make demo` and `make test` need nothing else.
SHELL := /bin/bash
VENV := .venv/bin
RUN := tools/run-tests
SEEDS ?= 1000
MINUTES ?= 5

.DEFAULT_GOAL := help
.PHONY: help bootstrap build demo demo-files demo-packages test check sim sweep planted bench bench-files fmt lint docs clean asan tsan interop guest fuzz files-long soak soak-files

help: ## this list
	@sed -n 's/^\([a-z][a-z -]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 18

bootstrap:
	@tools/bootstrap build

demo-packages:
	@tools/bootstrap demo

build: bootstrap ## install what is missing for building, compile into build/dev, make .venv/bin/replctl and repld
	@tools/build dev

demo: demo-packages build ## two nodes on this machine: write, kill the primary, promote the other, nothing is lost
	@tools/demo

demo-files: build ## four bricks on this machine (root): mount, write, kill a brick, heal, nothing is lost
	@tools/demo-files

test: ## install what the tests need and run them all (about 12 minutes on two cores)
	@tools/bootstrap test
	@$(VENV)/python $(RUN)

check: build ## the fast part: lint, style, unit tests
	@$(VENV)/python $(RUN) --fast

sim: build ## simulator: make sim SEEDS=1000
	@REPL_SIM_SEEDS=$(SEEDS) $(VENV)/python -m pytest -q -n 2 --dist worksteal tests/sim

sweep: build ## metadata after a crash at every point, every image judged by drbdmeta as well
	@REPL_SWEEP=all $(VENV)/python -m pytest -q -n 2 --dist loadgroup tests/sim/test_metadata_sweep.py

planted: build ## plant known bugs one by one: the simulator must find each
	@$(VENV)/python tools/planted.py

bench: build ## measure (bench/README.md says how and what)
	@$(VENV)/python -m bench.run

bench-files: build ## measure a 2x2 volume through FUSE next to GlusterFS (root, about half an hour)
	@$(VENV)/python -m bench.files

lint: build ## ruff, mypy --strict, the style as a test
	@$(VENV)/python $(RUN) --only lint,mypy,tidy

fmt: bootstrap ## sort imports and format Python files
	@$(VENV)/ruff check --quiet --select I --fix repl nbd tests tools bench
	@$(VENV)/ruff format --quiet repl nbd tests tools bench

docs: build ## write the generated pages, check that every link between pages of docs/ leads somewhere
	@$(VENV)/python tools/make_states.py
	@$(VENV)/python tools/make_options.py
	@$(VENV)/python tools/check_docs.py

asan: build ## C tests and some simulator seeds with the address and undefined-behaviour sanitizers
	@$(VENV)/python $(RUN) --only asan-unit,asan-sim

tsan: build ## C tests with the thread sanitizer
	@$(VENV)/python $(RUN) --only tsan-unit

interop guest: ## our engine against real kernels in User-mode Linux guests, the whole matrix
	@tools/bootstrap test
	@tools/build dev
	@mkdir -p build/reports
	@$(VENV)/python -m pytest -v --interop -n 2 --dist loadfile --junitxml=build/reports/interop.xml tests/guest; \
		status=$$?; $(VENV)/python tools/interop_table.py build/reports/interop.xml; exit $$status

files-long: ## volumes of files: the tests of faults and of two mounts at full length (root, half an hour)
	@tools/bootstrap test
	@tools/build dev
	@$(VENV)/python -m pytest -q --files-long --timeout 1800 tests/integration/test_files_*.py

soak: build ## two nodes under load, one fault after the other, everything compared: make soak MINUTES=60 [SEED=n]
	@$(VENV)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(SOAK)

soak-files: build ## a volume of files under load, one fault after the other, everything compared (root): MINUTES=60 [SEED=n]
	@$(VENV)/python -m tests.soak_files --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(SOAK)

fuzz: ## libFuzzer and atheris on every target: make fuzz MINUTES=5
	@tools/bootstrap test
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check -r tools/requirements-fuzz.txt || true
	@tools/build dev
	@if command -v clang >/dev/null; then tools/build fuzz; fi
	@$(VENV)/python tools/fuzz --minutes $(MINUTES)

clean: ## remove everything that was built (.venv as well)
	rm -rf build .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis repl/engine/_engine.*.so repl/files/_brick.*.so
	find repl nbd tests tools bench -name __pycache__ -prune -exec rm -rf {} +
