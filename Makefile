.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
WEIGHTS := hoi_lightning/weights

# Where `make demo` works, on what, and the steps of its fits; HOI4D, OUT, SIZE, REMOVER and
# REMOVER_WEIGHTS are `make shards`' own.
DEMO ?= runs/demo
CLIPS ?= 256
FRAMES ?= 12
SEED ?= 0
STEPS ?= 600
FUSION_STEPS ?= 900
# What the two go on from, gently; minutes are not enough from scratch. MASK_BASE=null MASK_RATE=1e-3 MASK_CROP=0.5
# STEPS=1800 and BASE=$(WEIGHTS)/mini-base RATE=6e-4 have never seen a hand.
MASK_BASE ?= mini
MASK_RATE ?= 2e-4
MASK_CROP ?= 1
BASE ?= $(WEIGHTS)/mini/fusionnet
RATE ?= 1e-4
HOI4D ?= $(DEMO)/hoi4d
OUT ?= $(if $(filter $(DEMO)/hoi4d,$(HOI4D)),$(DEMO)/ho3pairs,data/ho3pairs)
SIZE ?= $(if $(filter $(DEMO)/hoi4d,$(HOI4D)),256,512)
REMOVER ?= opencv

FIT = $(PY) -m hoi_lightning fit
# Where the processor multiplies bf16 in hardware FusionNet's steps are faster in it, elsewhere slower: docs/benchmarks.md.
BF16 := $(if $(shell grep -om1 -e amx_bf16 -e avx512_bf16 /proc/cpuinfo),--trainer.precision bf16-mixed)
HERE = --trainer.default_root_dir $(DEMO) --ckpt_path last --data.shards $(DEMO)/ho3pairs

.PHONY: help setup demo shards check-data mini-metrics mini-weights test check fix clean-demo

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv and install the locked packages

$(READY): configs/requirements.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --progress-bar off --requirement configs/requirements.lock
	$(PY) -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(DEMO)/report.html  ## from nothing to hands on objects, on two CPU cores in about 15 minutes
	@echo; echo "results page: $(DEMO)/report.html"; echo "pictures:     $(DEMO)/grid.png"

# Each step leaves a file when it is finished; a stopped one goes on where it was.
$(DEMO)/hoi4d/demo.json: | $(READY)
	$(PY) -m data_prep demo $(DEMO)/hoi4d --clips $(CLIPS) --frames $(FRAMES) --seed $(SEED)

$(DEMO)/ho3pairs/manifest.json: $(DEMO)/hoi4d/demo.json
	$(PY) -m data_prep build --hoi4d $(DEMO)/hoi4d --out $(DEMO)/ho3pairs --remover opencv --size 256 --seed $(SEED)

$(DEMO)/latents.done: $(DEMO)/ho3pairs/manifest.json
	$(PY) -m data_prep latents $(DEMO)/ho3pairs --vae $(BASE) --overwrite
	touch $@

$(DEMO)/masknet/done: | $(DEMO)/ho3pairs/manifest.json
	$(FIT) -c configs/mini/masknet.yaml $(HERE) --run masknet --model.init_from $(MASK_BASE) \
		--model.learning_rate $(MASK_RATE) --data.crop_area $(MASK_CROP) --trainer.max_steps $(STEPS)
	touch $@

$(DEMO)/fusionnet/done: | $(DEMO)/latents.done
	$(FIT) -c configs/mini/fusionnet.yaml $(HERE) --run fusionnet --model.pretrained $(BASE) \
		--model.learning_rate $(RATE) --trainer.max_steps $(FUSION_STEPS) $(BF16)
	touch $@

$(DEMO)/report.html: $(DEMO)/masknet/done $(DEMO)/fusionnet/done
	$(PY) -m hoi_lightning evaluate --shards $(DEMO)/ho3pairs --out $(DEMO) --seed $(SEED) --max-samples 24 \
		--masknet $(DEMO)/masknet/checkpoints/last.ckpt --fusionnet $(DEMO)/fusionnet/checkpoints/last.ckpt \
		--runs $(DEMO)/masknet $(DEMO)/fusionnet

shards: $(READY) $(if $(filter $(DEMO)/hoi4d,$(HOI4D)),$(DEMO)/hoi4d/demo.json)  ## HO3Pairs shards: make shards HOI4D=/data/HOI4D OUT=/data/ho3pairs
	@$(if $(filter opencv,$(REMOVER)),$(if $(filter $(DEMO)/hoi4d,$(HOI4D)),,echo "REMOVER=opencv is a preview: its smear shows where hands were; train on shards of REMOVER=diffusion"))
	$(PY) -m data_prep build --hoi4d $(HOI4D) --out $(OUT) --remover $(REMOVER) $(if $(REMOVER_WEIGHTS),--remover-weights $(REMOVER_WEIGHTS)) \
		--size $(SIZE) --seed $(SEED)

check-data: $(READY) $(if $(filter $(DEMO)/hoi4d,$(HOI4D)),$(DEMO)/hoi4d/demo.json)  ## what of a HOI4D is there, and what its shards will cost: make check-data HOI4D=/data/HOI4D
	$(PY) -m data_prep check $(HOI4D)

# What comes with the package is drawn with seeds that no data set uses, one category left out. Many short clips, each of
# an object of its own: what MaskNet learns of a picture is limited by how many objects it has seen.
# The whole way in a 200th of the steps, the package's weights left alone:
#   make mini-weights MINI=runs/try WEIGHTS=runs/try/weights MINI_CLIPS=48 PER=200
MINI := runs/weights
MINI_CLIPS ?= 5760
PER ?= 1
steps = --trainer.max_steps $(shell expr $(1) / $(PER))
log = $(PY) -c "from pathlib import Path; from hoi_lightning.run_log import log_text; print(log_text(Path('$(MINI)/$(1)')), end='')"
MINI_HERE = --trainer.default_root_dir $(MINI) --ckpt_path last --data.shards
mini-metrics: $(READY)  ## train hoi_lightning/weights/mini-metrics afresh and show what it feels
	$(PY) -m data_prep demo $(MINI)/hoi4d-240 --split train --clips 240 --traps none --for-weights
	$(PY) -m data_prep build --hoi4d $(MINI)/hoi4d-240 --out $(MINI)/ho3pairs-128 --remover opencv --size 128
	$(FIT) -c configs/mini/metrics.yaml $(MINI_HERE) $(MINI)/ho3pairs-128 --run metrics
	mkdir -p $(WEIGHTS)/mini-metrics
	cp $(MINI)/metrics/mini-metrics/* $(MINI)/metrics/config.yaml $(WEIGHTS)/mini-metrics/
	$(call log,metrics) > $(WEIGHTS)/mini-metrics/log.csv
	$(PY) -m data_prep demo $(MINI)/distorted --clips 12 --frames 8 --seed 1 --distortions
	$(PY) -m hoi_lightning bench metrics --pictures $(MINI)/distorted/distortions --out $(MINI)/bench

mini-weights: $(MINI)/mini/card.json  ## train hoi_lightning/weights/mini-base and mini afresh: hours on a CPU
	rm -rf $(WEIGHTS)/mini-base $(WEIGHTS)/mini
	mkdir -p $(WEIGHTS)
	cp -r $(MINI)/mini-base $(MINI)/mini $(WEIGHTS)/
	for part in vae sharp; do cp $(MINI)/$$part/config.yaml $(WEIGHTS)/mini-base/$$part.config.yaml; done
	for part in vae sharp; do $(call log,$$part) > $(WEIGHTS)/mini-base/$$part.log.csv; done

$(MINI)/hoi4d/demo.json: | $(READY)
	$(PY) -m data_prep demo $(MINI)/hoi4d --split varied --clips $(MINI_CLIPS) --frames 8 --traps none --for-weights

$(MINI)/ho3pairs/manifest.json: $(MINI)/hoi4d/demo.json
	$(PY) -m data_prep build --hoi4d $(MINI)/hoi4d --out $(MINI)/ho3pairs --remover opencv --size 256 --splits 0.03,0

$(MINI)/vae/done: | $(MINI)/ho3pairs/manifest.json
	$(FIT) -c configs/mini/vae.yaml $(MINI_HERE) $(MINI)/ho3pairs --run vae $(call steps,3000)
	touch $@

# sharp edges: an adversary, more blocks
$(MINI)/sharp/done: | $(MINI)/vae/done
	$(FIT) -c configs/mini/sharpen.yaml $(MINI_HERE) $(MINI)/ho3pairs --run sharp --model.pretrained $(MINI)/vae/base \
		$(call steps,3600)
	touch $@

$(MINI)/base/done: | $(MINI)/sharp/done
	$(FIT) -c configs/mini/base.yaml $(MINI_HERE) $(MINI)/ho3pairs --run base --model.pretrained $(MINI)/sharp/base $(call steps,2000)
	touch $@

# What the next stage goes on from, in 32 bits, because the latents are filed under the autoencoder's exact weights.
PART = fusionnet
$(MINI)/base-32/card.json: PART = base
$(MINI)/layouts-32/card.json $(MINI)/clearer-32/card.json: PART = masknet
$(patsubst %,$(MINI)/%-32/card.json,base hands wider whole fingers layouts clearer): $(MINI)/%-32/card.json: $(MINI)/%/done
	rm -rf $(@D)
	$(PY) -m hoi_lightning export --$(PART) $(MINI)/$*/checkpoints/last.ckpt --out $(@D) --dtype float32

$(MINI)/latents.done: $(MINI)/base-32/card.json
	$(PY) -m data_prep latents $(MINI)/ho3pairs --vae $(MINI)/base-32 --overwrite
	touch $@

# first with windows of a hand, then with wider ones, which show all of it, at last with such as it samples
$(MINI)/hands/done: | $(MINI)/latents.done
	$(FIT) -c configs/mini/fusionnet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run hands --model.pretrained $(MINI)/base-32 \
		--model.crop 24 --data.batch_size 16 $(call steps,6500) $(BF16)
	touch $@

$(MINI)/wider/done: | $(MINI)/hands-32/card.json
	$(FIT) -c configs/mini/fusionnet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run wider --model.pretrained $(MINI)/hands-32/fusionnet \
		--model.crop 32 --data.batch_size 9 --model.learning_rate 4e-4 $(call steps,23700) $(BF16)
	touch $@

$(MINI)/whole/done: | $(MINI)/wider-32/card.json
	$(FIT) -c configs/mini/fusionnet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run whole --model.pretrained $(MINI)/wider-32/fusionnet \
		--data.batch_size 8 --model.learning_rate 4e-4 $(call steps,12000) $(BF16)
	touch $@

# t above T/2, where it is decided what is a finger, three times in four
MUON = --model.timestep_power 0.5 --model.compile_unet true --model.optimizer muon --data.batch_size 12
$(MINI)/fingers/done: | $(MINI)/whole-32/card.json
	$(FIT) -c configs/mini/fusionnet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run fingers --model.pretrained $(MINI)/whole-32/fusionnet \
		$(MUON) --model.learning_rate 8e-4 $(call steps,20900) $(BF16)
	touch $@

# at last the hardest grips more often
$(MINI)/fusionnet/done: | $(MINI)/fingers-32/card.json
	$(FIT) -c configs/mini/fusionnet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run fusionnet --model.pretrained $(MINI)/fingers-32/fusionnet \
		$(MUON) --model.learning_rate 6e-4 --data.category_repeats.Knife 3 --data.category_repeats.Mug 2 $(call steps,1600) $(BF16)
	touch $@

$(MINI)/layouts/done: | $(MINI)/ho3pairs/manifest.json
	$(FIT) -c configs/mini/masknet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run layouts $(call steps,34000)
	touch $@

# then with pictures as they come: it sees sizes and handles better
AS_THEY_COME = --model.optimizer muon --data.noise 0.2 --data.colour 0.1
$(MINI)/clearer/done: | $(MINI)/layouts-32/card.json
	$(FIT) -c configs/mini/masknet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run clearer --model.init_from $(MINI)/layouts-32 \
		$(AS_THEY_COME) --model.learning_rate 1.2e-3 --data.crop_area 0.85 $(call steps,6000)
	touch $@

# at last without crops, which make hands too large in whole pictures; not for long, or it learns the objects by heart
$(MINI)/masknet/done: | $(MINI)/clearer-32/card.json
	$(FIT) -c configs/mini/masknet.yaml $(MINI_HERE) $(MINI)/ho3pairs --run masknet --model.init_from $(MINI)/clearer-32 \
		$(AS_THEY_COME) --model.learning_rate 6e-4 --data.crop_area 1 $(call steps,3000)
	touch $@

$(MINI)/mini/card.json: $(MINI)/fusionnet/done $(MINI)/masknet/done
	rm -rf $(MINI)/mini $(MINI)/mini-base
	$(PY) -m hoi_lightning export --base $(MINI)/base/checkpoints/last.ckpt --out $(MINI)/mini-base
	$(PY) -m hoi_lightning export --masknet $(MINI)/masknet/checkpoints/last.ckpt --fusionnet $(MINI)/fusionnet/checkpoints/last.ckpt --out $(MINI)/mini

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
