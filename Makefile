# `make demo` trains a classifier and leaves a report; `make test` checks everything. Both make their environment, once.
# Other targets: test-slow, test-transformers, test-timm, test-triton, examples, bench, bench-sizes, bench-choice, bench-peers, bench-gpu, long-context, parallel, faults, numerics, fuzz, fuzz-kernels, reproduce-TABLE, lint, format, types, docs, docs-serve, package, wheels, installed, release-check, publish, native-check, sanitize.

PYTHON ?=
# One test process a core, one thread a process.
WORKERS ?= 2
BIN := .venv/bin
DEMO := runs/demo

export PYTHON
# Tests and checks start many processes, which are to find compiled what they import.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: environment-timeseries environment-dev help demo test test-slow test-transformers test-timm test-triton test-lowest examples bench bench-sizes bench-choice bench-peers bench-gpu long-context parallel faults numerics fuzz fuzz-kernels lint format types docs docs-serve package wheels installed release-check publish native-check sanitize

help:
	@sed -n 's/^# //p' Makefile | head -n 2

# Each looks at what is there first, and is quick where nothing has changed.
environment-timeseries environment-dev:
	@scripts/make_environment.sh $(@:environment-%=%)

demo: environment-timeseries
	@echo "==> Training Flowformer on JapaneseVowels: 30 epochs, about 3 minutes on 2 free cores"
	rm -rf $(DEMO)
	$(BIN)/flowformer train japanese-vowels --training.epochs 30 --run-dir $(DEMO)
	@echo "==> The report is $(DEMO)/report/index.html: open it in a browser"
	@echo "    Next: '$(BIN)/flowformer recipes' lists what else can be trained, 'make test' checks the project"

# What fails fastest comes first; pytest comes last, so that its summary is what is left on the screen.
test: lint types docs package environment-dev
	@echo "==> Tests, $(WORKERS) at a time"
	@# worksteal: neighbours stay together, so that what the tests of a module share is made once
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu"
	@echo "==> Everything passed. Next: 'make demo' trains a classifier, 'make test-slow' runs the tests that take minutes"

test-slow: environment-dev
	@echo "==> Slow tests, one at a time"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slow and not gpu"

test-transformers: environment-dev
	@echo "==> transformers' own common model tests on our classes; fetches its source distribution once"
	OMP_NUM_THREADS=1 $(BIN)/python scripts/transformers_tests.py

test-timm: environment-dev
	@echo "==> timm's own model tests on our models, half a minute; fetches its source distribution once"
	OMP_NUM_THREADS=1 $(BIN)/python scripts/timm_tests.py

test-triton: environment-dev
	@echo "==> The GPU kernels under Triton's interpreter, all of the tests, about 10 minutes"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal tests/ops/backends/test_triton.py

test-lowest:
	@echo "==> The tests with the lowest releases that pyproject.toml allows: an environment of their own, then half an hour"
	@scripts/test_lowest.sh $(WORKERS)

bench: environment-dev
	@echo "==> Attention on a CPU against its peers and the machine's limit, about 10 minutes; leave the machine alone"
	$(BIN)/python -m benchmarks attention_cpu
	$(BIN)/python -m benchmarks attention_cpu --report
	@echo "==> A training step against the published model's, about 4 minutes"
	$(BIN)/python -m benchmarks training_step

bench-sizes: environment-dev
	@echo "==> Attention at every size beside its goals, about 10 minutes"
	$(BIN)/python -m benchmarks attention_sizes
	$(BIN)/python -m benchmarks attention_sizes --report

bench-choice: environment-dev
	@echo "==> The compiled backend against the others at sizes drawn at random, about 10 minutes"
	$(BIN)/python -m benchmarks backend_choice
	$(BIN)/python -m benchmarks backend_choice --report

bench-peers: environment-dev
	@echo "==> Peers that 'make bench' and 'make bench-sizes' measure where they find them: fast-transformers and ggml, a minute each"
	$(BIN)/python -m benchmarks fast_transformers
	$(BIN)/python -m benchmarks ggml

bench-gpu: environment-dev
	@echo "==> Attention on a GPU against its peers and the card's limits; stopped, it goes on"
	$(BIN)/python -m benchmarks attention_gpu
	$(BIN)/python -m benchmarks attention_gpu --report

long-context: environment-dev
	@echo "==> A million tokens: memory, and error against float64; about 3 minutes"
	$(BIN)/python -m benchmarks long_context

# The ranks are hosts in network namespaces, which only root can make.
parallel: environment-dev
	@echo "==> One sequence over ranks: bytes sent, and a step of a million tokens; as root, about 3 minutes"
	TORCH_CPP_LOG_LEVEL=ERROR OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks sequence_parallel
	$(BIN)/python -m benchmarks sequence_parallel --report

faults: environment-dev
	@echo "==> Faults: kills, lost processes, full disks, damaged checkpoints; as root all of them. Up to half an hour"
	TORCH_CPP_LOG_LEVEL=ERROR OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks faults
	$(BIN)/python -m benchmarks faults --report

numerics: environment-dev
	@echo "==> Every backend under stress, about 10 minutes"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks numerics

# atheris is no part of the environment: it has wheels for fewer systems.
fuzz: environment-dev
	@echo "==> Every reader of a file on damaged ones, half an hour"
	$(BIN)/pip install --quiet atheris==3.0.0 || echo "    no atheris here: hypothesis alone"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks fuzz

fuzz-kernels: environment-dev
	@echo "==> The compiled kernels in calls drawn at random, each instruction set that is here, 5 minutes"
	$(BIN)/python -m benchmarks kernel_fuzz
	$(BIN)/python -m benchmarks kernel_fuzz --report

# One table of the pages again, and its pictures: `python -m benchmarks reproduce` lists the names.
reproduce-%: environment-dev
	$(BIN)/python -m benchmarks reproduce $*

examples: environment-dev
	@echo "==> The notebooks of examples/, each within two minutes on two cores"
	OMP_NUM_THREADS=2 $(BIN)/pytest -m slow tests/test_notebooks.py --durations=5

lint: environment-dev
	@echo "==> Lint"
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: environment-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: environment-dev
	@echo "==> Types"
	$(BIN)/pyright

docs: environment-dev
	@echo "==> Documentation"
	@# Not --quiet: it hides the warnings from --strict too.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python scripts/check_site.py site
	@echo "    site/index.html is the front page: open it in a browser"

docs-serve: environment-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

package: environment-dev
	@echo "==> Source archive and wheel, and what the wheel does alone"
	rm -rf build/package
	$(BIN)/python -m build --no-isolation --quiet --outdir build/package
	$(BIN)/python scripts/check_wheel.py build/package

# The tools of a release have an environment of their own: few who work here need them.
.venv-release/.installed: scripts/release_tools.txt
	@echo "==> The tools of a release, in .venv-release: once, half a minute and 500 MB of disk, mostly a compiler"
	$(or $(PYTHON),python3) -m venv --clear .venv-release
	.venv-release/bin/python -m pip install --quiet --disable-pip-version-check --requirement scripts/release_tools.txt
	touch $@

wheels: environment-dev .venv-release/.installed
	@echo "==> What is published, in dist/: the source archive, wheels for Linux on x86-64 and Arm, and one for any platform; 6 minutes"
	scripts/build_wheels.sh
	$(BIN)/python scripts/check_wheel.py dist manylinux_2_17_x86_64 manylinux_2_17_aarch64 any
	scripts/check_old_systems.sh

installed:
	@echo "==> dist/ as a new user gets it: PyTorch and little else from an index, flowformer info, the first results"
	$(or $(PYTHON),python3) scripts/check_wheel.py dist --alone

# All of a release but what needs a network; TAG=v0.1.0 is to be its version.
release-check: environment-dev .venv-release/.installed
	@echo "==> Version, date and tag"
	$(BIN)/python scripts/check_release.py $(TAG)
	@echo "==> Workflows"
	.venv-release/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv-release/bin/zizmor --offline --quiet .github
	$(MAKE) docs wheels
	.venv-release/bin/twine check --strict dist/*
	@echo "==> The tests of the library, on the wheel that pip takes here"
	rm -rf build/wheel
	$(BIN)/python -m pip install --quiet --no-deps --no-index --find-links dist --target build/wheel flowformer
	PYTHONPATH=build/wheel $(BIN)/python -c "import flowformer; assert 'build/wheel' in flowformer.__file__, flowformer.__file__"
	PYTHONPATH=build/wheel OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu" tests/ops tests/nn tests/conformance tests/models
	@echo "==> dist/ is ready: tag the commit, and push the tag"

publish: .venv-release/.installed
	.venv-release/bin/twine upload --non-interactive dist/*

# Of the CPU library: every compiler that is here, without warnings; and memory errors and undefined behaviour.
native-check: environment-dev
	@echo "==> The CPU library under gcc and clang, and for Arm"
	scripts/check_native.sh

sanitize: environment-dev
	@echo "==> The CPU backend's tests with sanitizers, a quarter of an hour"
	scripts/sanitize.sh
