.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# Where `make demo` works, on what, and the steps of its fits; HOI4D, OUT, SIZE and REMOVER are `make shards`' own.
DEMO ?= runs/demo
CLIPS ?= 128
FRAMES ?= 24
SEED ?= 0
STEPS ?= 1800
FUSION_STEPS ?= 1800
HOI4D ?= $(DEMO)/hoi4d
OUT ?= $(if $(filter $(DEMO)/hoi4d,$(HOI4D)),$(DEMO)/ho3pairs,data/ho3pairs)
SIZE ?= $(if $(filter $(DEMO)/hoi4d,$(HOI4D)),128,512)
REMOVER ?= opencv

FIT = $(PY) -m hoi_lightning fit
HERE = --trainer.default_root_dir $(DEMO) --ckpt_path last --data.shards $(DEMO)/ho3pairs

.PHONY: help setup demo shards mini-metrics test check fix clean-demo

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv and install the locked packages

$(READY): configs/requirements.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --progress-bar off --requirement configs/requirements.lock
	$(PY) -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(DEMO)/report.html  ## from nothing to hands on objects, on two CPU cores in about 20 minutes
	@echo; echo "results page: $(DEMO)/report.html"; echo "pictures:     $(DEMO)/grid.png"

# Each step leaves a file when it is finished; a stopped one goes on where it was.
$(DEMO)/hoi4d/demo.json: | $(READY)
	$(PY) -m data_prep demo $(DEMO)/hoi4d --clips $(CLIPS) --frames $(FRAMES) --seed $(SEED)

$(DEMO)/ho3pairs/manifest.json: $(DEMO)/hoi4d/demo.json
	$(PY) -m data_prep build --hoi4d $(DEMO)/hoi4d --out $(DEMO)/ho3pairs --remover opencv --size 128 --seed $(SEED)

$(DEMO)/vae/done: | $(DEMO)/ho3pairs/manifest.json
	$(FIT) -c configs/mini/vae.yaml $(HERE) --run vae --trainer.max_steps $(STEPS)
	touch $@

$(DEMO)/latents.done: $(DEMO)/vae/done
	$(PY) -m data_prep latents $(DEMO)/ho3pairs --vae $(DEMO)/vae/base --overwrite
	touch $@

$(DEMO)/masknet/done: | $(DEMO)/latents.done
	$(FIT) -c configs/mini/masknet.yaml $(HERE) --run masknet --trainer.max_steps $(STEPS)
	touch $@

$(DEMO)/fusionnet/done: | $(DEMO)/latents.done
	$(FIT) -c configs/mini/fusionnet.yaml $(HERE) --run fusionnet --model.pretrained $(DEMO)/vae/base --trainer.max_steps $(FUSION_STEPS)
	touch $@

$(DEMO)/report.html: $(DEMO)/masknet/done $(DEMO)/fusionnet/done
	$(PY) -m hoi_lightning evaluate --shards $(DEMO)/ho3pairs --out $(DEMO) --seed $(SEED) --max-samples 24 \
		--masknet $(DEMO)/masknet/checkpoints/last.ckpt --fusionnet $(DEMO)/fusionnet/checkpoints/last.ckpt \
		--runs $(DEMO)/vae $(DEMO)/masknet $(DEMO)/fusionnet

shards: $(READY) $(if $(filter $(DEMO)/hoi4d,$(HOI4D)),$(DEMO)/hoi4d/demo.json)  ## HO3Pairs shards: make shards HOI4D=/data/HOI4D OUT=/data/ho3pairs
	$(PY) -m data_prep build --hoi4d $(HOI4D) --out $(OUT) --remover $(REMOVER) --size $(SIZE) --seed $(SEED)

# The feature network of fd_mini and lpips_mini: drawn with seeds that no data set uses, one category left out.
MINI := runs/weights
mini-metrics: $(READY)  ## train hoi_lightning/weights/mini-metrics afresh and show what it feels
	$(PY) -m data_prep demo $(MINI)/hoi4d --split train --clips 240 --traps none --for-weights
	$(PY) -m data_prep build --hoi4d $(MINI)/hoi4d --out $(MINI)/ho3pairs --remover opencv --size 128
	$(FIT) -c configs/mini/metrics.yaml --trainer.default_root_dir $(MINI) --data.shards $(MINI)/ho3pairs --run metrics --ckpt_path last
	mkdir -p hoi_lightning/weights/mini-metrics
	cp $(MINI)/metrics/mini-metrics/* $(MINI)/metrics/config.yaml hoi_lightning/weights/mini-metrics/
	cp $(MINI)/metrics/csv/version_0/metrics.csv hoi_lightning/weights/mini-metrics/log.csv
	$(PY) -m data_prep demo $(MINI)/distorted --clips 12 --frames 8 --seed 1 --distortions
	$(PY) -m hoi_lightning bench metrics --pictures $(MINI)/distorted/distortions --out $(MINI)/bench

test: $(READY)  ## all quick tests, under 10 minutes on two cores
	$(PY) -m pytest

check: $(READY)  ## look: formatting, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

fix:  ## mend: formatting and what lint can mend
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean-demo:  ## forget the demo
	rm -rf $(DEMO)
