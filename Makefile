# `make demo` and `make test` set up everything they need in .venv and run.
PYTHON ?= python3.11
BIN := .venv/bin
PIP ?= $(BIN)/python -m pip
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: monitor demo test fast coverage lint bench bench-gpu fuzz image image-gpu docs reference clean

demo: .venv/.ready            ## phantom scans to benchmarked, searched, explained, exported model
	dvc repro
	@echo "Report: results/evaluate/report.html    Bundle: results/export/bundle"

test: .venv/.ready            ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope

fast: .venv/.ready            ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope -m "not slow"

coverage: .venv/.ready        ## all tests, and the lines that they run; half an hour
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -q -n 2 --dist loadscope
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m benchmarks.coverage

lint: .venv/.ready            ## style, types, and the arrows between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fuzz: .venv/.ready            ## 10,000 damaged files through the readers, 10,000 malformed requests to the endpoint
	$(BIN)/python -m benchmarks.fuzz_readers
	$(BIN)/python -m benchmarks.fuzz_endpoint

BENCHMARKS := depthwise search_step loader ingest audit intervals ood cam evolution ablation engines predict load \
  restarts torchserve monitoring alerts overhead flat pipeline
bench: .venv/.ready           ## every benchmark of this machine, three hours, then one table of them; after `make demo`
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done
	$(BIN)/python -m benchmarks

bench-gpu: .venv/.ready       ## the paper's search and retraining at CC-CCII's size, the engines beside torch; needs a GPU
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.depthwise_gpu
	$(BIN)/python -m benchmarks.engines_gpu

docs: .venv/.ready            ## the documentation as a site, every link checked
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs
	@echo "Site: build/docs/index.html"

reference: .venv/.ready       ## docs/reference anew, from CLI, configuration and server
	$(BIN)/python -m docs.generate

# The wheels go in as files, so the build needs neither a network nor an index. In real use BASE is pinned by digest.
BASE ?= docker.io/library/python:3.11-slim-bookworm
DOCKER ?= docker
TAG ?= 0.1.0
image: .venv/.ready           ## images of the stages and of the endpoint, for Kubernetes
	rm -rf build/wheels
	$(PIP) wheel --quiet --disable-pip-version-check -c constraints.txt -w build/wheels '.[kubeflow]' '.[serving,monitoring]'
	DOCKER_BUILDKIT=1 $(DOCKER) build --network=none --build-arg BASE=$(BASE) -f serving/Containerfile -t covidnet3d-serving:$(TAG) .
	DOCKER_BUILDKIT=1 $(DOCKER) build --network=none --build-arg BASE=$(BASE) -f components/Containerfile -t covidnet3d-stages:$(TAG) .
	$(DOCKER) image inspect -f '{{index .RepoTags 0}} {{.Size}} bytes' covidnet3d-serving:$(TAG) covidnet3d-stages:$(TAG)

# On a BASE with Python 3.11, CUDA 13 and cuDNN 9, and the driver's container toolkit on the node.
image-gpu: .venv/.ready       ## image of the endpoint for the overlay onnx-gpu; BASE=... has CUDA and cuDNN
	rm -rf build/wheels
	$(PIP) wheel --quiet --disable-pip-version-check -c constraints.txt -w build/wheels '.[serving,monitoring,gpu]'
	DOCKER_BUILDKIT=1 $(DOCKER) build --network=none --build-arg BASE=$(BASE) --build-arg EXTRAS=serving,monitoring,gpu \
	  -f serving/Containerfile -t covidnet3d-serving-gpu:$(TAG) .

monitor: .venv/.ready         ## the demo's endpoint under load, with Prometheus and Alertmanager
	$(BIN)/python -m serving.monitoring.local --bundle results/export/bundle

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:                        ## results and caches, not the environment
	rm -rf results .dvc/cache .dvc/tmp .pytest_cache .mypy_cache .ruff_cache
