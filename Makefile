# One environment, .venv, made once; every target can be repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHECKPOINTS := data_cache/checkpoints
RESULTS := data_cache/results/shipped
NETWORKS := resnet_dnn_18 resnet_dnn_smoothing_18 resnet_mcdo_18 resnet_mcdo_smoothing_18 resnet_mcdo_18_mlp
EPOCHS = 24
TRAIN = $(BIN)/python -m models.train --epochs $(EPOCHS) --schedule cosine --precision bfloat16 --seed 0 --out $@ --model-args width=16

.PHONY: install ext demo test browser pictures lint format bench bench-app bench-large checkpoints results clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

# a network trained on real images: its curvature, as a table and a figure
demo: $(STAMP)
	$(BIN)/python -m ext || echo "going on with torch's own operations"
	$(BIN)/python -m analyze.hessian --ckpt resnet_mcdo_smoothing_18

# the fused smoothing operator, compiled for this machine
ext: $(STAMP)
	$(BIN)/python -m ext

# each worker with one thread: most tests are too small for two
test: ext
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(nproc) --dist loadfile

# the explorer in a real browser; `make test` leaves these tests out
browser: ext
	.ci/chromium
	OMP_NUM_THREADS=1 LANDSCOPE_BROWSER=require $(BIN)/python -m pytest tests/apps/browser

# the explorer's pictures in docs, from the results that ship
pictures: $(STAMP)
	.ci/chromium
	$(BIN)/python tests/apps/browser/tour.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# speed, side by side in one run; the JSON is committed with the machine described
bench: ext
	$(BIN)/python tests/benchmarks/hessian.py
	$(BIN)/python tests/benchmarks/smoothing.py
	$(BIN)/python tests/benchmarks/features.py
	$(BIN)/python tests/benchmarks/robustness.py
	$(BIN)/python tests/benchmarks/landscape.py

# the explorer's seconds in a browser
bench-app: $(STAMP)
	.ci/chromium
	$(BIN)/python tests/benchmarks/app.py

# the network of 11 million parameters, apart because it takes as long as all the others
bench-large: $(STAMP)
	$(BIN)/python tests/benchmarks/hessian.py --only large

# the shipped checkpoints, again from nothing (6 to 15 minutes each on two cores); an interrupted one goes on
checkpoints: $(NETWORKS:%=$(CHECKPOINTS)/%.safetensors)

$(CHECKPOINTS)/resnet_mcdo_18_mlp.safetensors: EPOCHS = 44
$(CHECKPOINTS)/resnet_mcdo_18_mlp.safetensors: | $(STAMP)
	$(TRAIN) cblock=MLPBlock hidden=128 --model resnet_mcdo_18 --learning-rate 0.05 --warmup-epochs 3 # at 0.1 the MLP dies

$(CHECKPOINTS)/%.safetensors: | $(STAMP)
	$(TRAIN) --model $*

# the run files that the explorer opens on, again from nothing (about an hour on two cores); an interrupted one goes on
results: ext
	for name in $(NETWORKS); do \
	  shared="--ckpt $(CHECKPOINTS)/$$name.safetensors --out $(RESULTS)/$$name.h5 --no-plot"; \
	  $(BIN)/python -m analyze $$shared --skip landscape && \
	  $(BIN)/python -m analyze.landscape $$shared --limit 256 --frames 4 --no-keep-directions || exit; \
	done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
