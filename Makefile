# Two commands matter: `make reproduce` and `make test`. `make help` lists the rest.
PYTHON ?= python3
PROFILE ?= quick
PAPERS ?=
SEEDS ?=
JOBS ?=
DEVICE ?=
DATA ?= cifar10
TORCH_INDEX ?=
PHONE ?=
SUBMISSIONS ?=
UNSAFE ?=

BIN := .venv/bin
READY := .venv/.ready
BOOK := .venv/.book
COURSE := .venv/.course
OPTIONS = --profile $(PROFILE) $(if $(JOBS),--jobs "$(JOBS)") $(if $(PAPERS),--papers "$(PAPERS)") $(if $(SEEDS),--seeds "$(SEEDS)")

export IPYTHONDIR := $(CURDIR)/.ipython
export JUPYTER_NO_CONFIG := 1
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH PYTHONPATH
unexport PYTHONDONTWRITEBYTECODE  # set in many images: every process would compile all the modules that it imports anew
export PHONE SUBMISSIONS

.PHONY: help setup reproduce plan test verify bench data notebooks book assignments grade lab check phone-extra phone-runner clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo 'Variables: PROFILE=quick|standard|paper PAPERS="li2017 ..." SEEDS="0 1 2" JOBS=2 DEVICE=auto|cpu|cuda'
	@echo '           ADOPT=1 (copy finished runs into the record) CONFIRM=1 (start profile paper) TORCH_INDEX=URL DATA=cifar10'
	@echo '           PHONE=auto|SERIAL (measure that phone too) MINUTES=10 MEGABYTES=100 (what it may take of it) RUNNER=binary'
	@echo '           SUBMISSIONS=folder (to grade) UNSAFE=1 (grade without a sandbox)'

setup: $(READY)  ## make .venv with everything that reproduce and test need

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11; run make PYTHON=python3.11 (or newer)"; exit 1; }
	@echo "Setting up .venv. PyTorch with CUDA downloads about 3 GB and takes about 6 GB of disk; without a GPU take a"
	@echo "CPU build instead (0.2 GB to download, 1.5 GB of disk): make setup TORCH_INDEX=..., see README."
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q --no-compile --index-url $(TORCH_INDEX) $$(grep -E '^(torch|torchvision)==' requirements.lock))
	$(BIN)/python -m pip install -q --no-compile -r requirements.lock
	$(BIN)/python -m pip install -q --no-compile --no-deps -e .
	@touch $(READY)
	@echo "Ready: $$(du -sh .venv | cut -f1) in .venv"

reproduce: $(READY)  ## compute a profile afresh, execute the notebooks, regenerate results/, compare with the record
	$(BIN)/shrinkbook reproduce $(OPTIONS) $(if $(DEVICE),--device $(DEVICE)) $(if $(ADOPT),--adopt) $(if $(PHONE),--phone "$$PHONE")

plan: $(READY)  ## what reproduce would run: stored, or expected time
	@$(BIN)/shrinkbook plan $(OPTIONS) $(if $(DEVICE),--device $(DEVICE))

test: $(READY)  ## library tests, notebooks against their stored outputs (three at once: they wait for a third of their time)
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder --nbval --nbval-current-env --nbval-cell-timeout 240 \
	  --nbval-sanitize-with tests/sanitize.cfg tests $(wildcard notebooks/*.ipynb)

check: $(READY)  ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

verify: $(READY)  ## recompute tables and verdicts from the stored runs; a difference is a failure
	@$(BIN)/shrinkbook verify

bench: $(READY)  ## speed against the usual way: training, EVBMF ranks, kernel clustering
	$(BIN)/python -m shrinkbook.bench.throughput $(if $(DEVICE),--device $(DEVICE))
	$(BIN)/python -m shrinkbook.bench.ranks
	$(BIN)/python -m shrinkbook.bench.clustering

data: $(READY)  ## download a data set or public weights: DATA=mnist|cifar10|cifar100|imagenet|resnet20-public|resnet56-public|...
	$(BIN)/shrinkbook data $(DATA)

phone-extra: .venv/.phone  ## what phones (and their stand-in, this host by ncnn) need: converter, ncnn, adb; 0.1 GB

.venv/.phone: $(READY) requirements-phone.lock
	$(BIN)/python -m pip install -q --no-compile --no-deps -r requirements-phone.lock
	@touch $@

phone-runner: $(READY)  ## the program that runs on the phone: RUNNER=binary is checked, else built once, ten minutes
	@$(BIN)/python -m shrinkbook.measure.runner_build aarch64 build/phone

notebooks: $(READY)  ## execute the notebooks at quick and keep their outputs; regenerate results/ and README from the record, figures of standard too
	$(BIN)/shrinkbook notebooks

book: $(BOOK)  ## the offline HTML book of the executed notebooks, in build/book/html
	@$(BIN)/python -m shrinkbook.book

$(BOOK): $(READY) requirements-book.lock
	$(BIN)/python -m pip install -q --no-compile --no-deps -r requirements-book.lock
	@touch $(BOOK)

assignments: $(COURSE)  ## what students of the course get, in build/course/release
	@$(BIN)/python -m shrinkbook.course assignments

grade: $(COURSE)  ## grade SUBMISSIONS=folder, one folder a student, in a sandbox; into build/course/graded
	@test -n "$$SUBMISSIONS" || { echo "name the folder that has one folder a student: make grade SUBMISSIONS=folder"; exit 1; }
	@$(BIN)/python -m shrinkbook.course grade "$$SUBMISSIONS" $(if $(UNSAFE),--unsafe)

$(COURSE): $(READY) requirements-course.lock
	$(BIN)/python -m pip install -q --no-compile --no-deps -r requirements-course.lock
	@touch $(COURSE)

lab: $(READY)  ## JupyterLab on the notebooks
	$(BIN)/python -m pip install -q --no-compile -e '.[lab]'
	JUPYTER_NO_CONFIG= $(BIN)/jupyter lab --notebook-dir notebooks

clean:  ## remove what was computed here; the record, the data cache and .venv stay
	rm -rf build results/*/notebooks .pytest_cache .ruff_cache .mypy_cache
