# `make help` lists what there is. On a fresh machine (python3 3.11 to 3.13, make): `make run`, `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
UV_VERSION := 0.13.9
STORAGE ?= ./storage
IMAGE   ?= mnist-ray:0.1.0
# Of docker, podman and buildah, the first that works here.
ENGINE  ?= $(shell for e in docker podman buildah; do $$e info >/dev/null 2>&1 && echo $$e && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-quick test-cluster drill check docs tour bench format lock image rehearse clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r n d; do printf '  make %-12s %s\n' "$$n" "$$d"; done

setup: $(VENV)/.ready  ## make .venv from the hashed lock, compile bytecode, install the package
$(VENV)/.ready: requirements.lock pyproject.toml | $(UV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline --editable .
	@$(BIN)/python -m compileall -q mnist_ray
	@touch $@

$(UV):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "make: Python 3.11, 3.12 or 3.13 is needed (the range of TensorFlow), but $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv $(VENV) || { echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.ready-dev: requirements-dev.lock $(VENV)/.ready
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements-dev.lock
	@touch $@

run: $(VENV)/.ready  ## the whole job on real MNIST, into ./storage/mnist
	$(BIN)/mnist-ray run --storage $(STORAGE)

QUICK := not (ray or tensorflow or slow or drill or cluster or rehearsal)
SLOW  := (ray or tensorflow or slow) and not (drill or cluster or rehearsal)

# Most tests wait for processes, so three parts run side by side: the quick tests, those of whole jobs, and the other slow
# ones. What the first two print follows in the end.
test: $(VENV)/.ready-dev  ## all tests, with real Ray processes
	@logs=$$(mktemp -d); \
	part() { name=$$1; shift; $(BIN)/python -m pytest -o cache_dir=.pytest_cache/$$name "$$@" $(AGAIN); }; \
	part quick -m "$(QUICK)" >$$logs/quick 2>&1 & quick=$$!; \
	part jobs -m "$(SLOW)" tests/docs tests/jobs >$$logs/jobs 2>&1 & jobs=$$!; \
	part slow -m "$(SLOW)" --ignore tests/docs --ignore tests/jobs; slow=$$?; \
	wait $$jobs; jobs=$$?; echo "The tests of whole jobs, run beside these:"; cat $$logs/jobs; \
	wait $$quick; quick=$$?; echo "The quick tests, run beside these:"; cat $$logs/quick; rm -r $$logs; \
	exit $$((slow % 5 | jobs % 5 | quick % 5))  # 5: with AGAIN, nothing of this part had failed

test-quick: $(VENV)/.ready-dev  ## the tests without Ray and TensorFlow: under a minute
	$(BIN)/python -m pytest -m "$(QUICK)"

test-cluster: $(VENV)/.ready-dev  ## the manifests on the cluster of KUBECONFIG: admitted, or refused
	$(BIN)/python -m pytest -m cluster tests/cluster

drill: $(VENV)/.ready-dev  ## the long drills: lose any process
	$(BIN)/python -m pytest -m drill

check: $(VENV)/.ready-dev  ## formatting, lint, types, who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/hadolint deploy/Dockerfile deploy/overlays/train-own/Dockerfile

docs: $(VENV)/.ready-dev  ## the documentation as a site, into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tour: $(VENV)/.ready-dev  ## run docs/tutorial.md, a whole run included, and write its outputs and pictures
	$(BIN)/python -m tests.docs.tour

format: $(VENV)/.ready-dev  ## rewrite the code to pass the format check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready-dev  ## the benchmarks: ratios, both sides measured in one run
	$(BIN)/python -m tests.benchmarks

image:  ## the container image; BASE=NAME@sha256:… pins its base, VARIANT=gpu brings CUDA
	@test -n "$(ENGINE)" || { echo "make: none of docker, podman and buildah works here; give ENGINE=PROGRAM" >&2; exit 1; }
	$(ENGINE) build --file deploy/Dockerfile --tag $(IMAGE)$(VARIANT:%=-%) $(BASE:%=--build-arg BASE=%) $(VARIANT:%=--build-arg LOCK=requirements-%.lock) .

rehearse: $(VENV)/.ready-dev  ## whole jobs, and their losses, on the cluster of KUBECONFIG; writes deploy/REHEARSED.md
	$(BIN)/python -m pytest -m rehearsal tests/cluster

lock: | $(UV)  ## resolve the dependencies again (hashes, no index addresses)
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' pyproject.toml --group build -o requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' pyproject.toml --group build --extra gpu -c requirements.lock -o requirements-gpu.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock

clean:  ## remove everything that the targets above made
	rm -rf $(VENV) storage .mypy_cache .ruff_cache .pytest_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
