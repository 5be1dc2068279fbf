# The same few verbs everywhere; CI calls them too. `make demo` and `make test` set up all they need.
#
#   make demo [DATA=folder-of-the-ECG-files]     make export MODEL=latest [BUNDLE=dir]
#   make test                                    make sample MODEL=latest [N=64] [OUT=samples.npz]
#   make check                                   make calibrate MODEL=latest
#                                                make bench MODEL=latest [OLD=record.json]
#                                                make report [RECORDS=files] [REPORT=folder]
#                                                make engine MODEL=latest [PARTS=step|split|all] [FLAVOR=rtx|tensorrt]
#
# MODEL is a run_id or `latest`, for `export` also a checkpoint; BUNDLE=dir names a bundle that lies elsewhere.

PYTHON ?= python3
VENV ?= .venv
E2CRF := $(VENV)/bin/e2crf
READY := $(VENV)/.ready

MODEL ?= latest
N ?= 64
OUT ?= samples.npz
REPORT ?= report
DATA ?=
NAMED := $(or $(BUNDLE),$(MODEL))

.PHONY: install demo export verify engine calibrate sample bench report gpu-check test test-slow check format clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,export,bench,hub,rtx,dev]'
	touch $@

# --- the line ---------------------------------------------------------------------------------------

export: $(READY)
	$(E2CRF) export $(MODEL) $(if $(BUNDLE),--bundle $(BUNDLE))

verify: $(READY)
	$(E2CRF) verify $(NAMED)

engine: $(READY)
	$(E2CRF) build $(NAMED) $(if $(PARTS),--parts $(PARTS)) $(if $(FLAVOR),--flavor $(FLAVOR))

sample: $(READY)
	$(E2CRF) sample $(NAMED) --num-samples $(N) --out $(OUT)

calibrate: $(READY)
	$(E2CRF) calibrate $(NAMED)

bench: $(READY)
	$(E2CRF) bench $(NAMED) $(if $(OLD),--compare $(OLD))

report: $(READY)
	$(E2CRF) report $(RECORDS) --out $(REPORT)

# On the machine with the GPU; it says of every backend what it lacks (pip install 'e2crf[tensorrt]' and so on). Without a
# network, in an environment that has PyTorch already: python -m bench.gpu_check
gpu-check: $(READY)
	$(VENV)/bin/python -m bench.gpu_check $(if $(GPU_OUT),--out $(GPU_OUT))

# --- the demo: every step is a command that anyone can type -----------------------------------------

DEMO_NAME := $(if $(DATA),demo-ecg,demo-gunpoint)
DEMO_DATA := $(if $(DATA),datamodule=ecg 'datamodule.data_dir="$(DATA)"' datamodule.batch_size=32 trainer.max_epochs=45,\
  datamodule=ucr datamodule.name=GunPoint datamodule.batch_size=25 trainer.max_epochs=700)
DEMO_MODEL := score_model.num_layers=4 score_model.n_head=4 score_model.d_ff=288 score_model.dropout=0.0 score_model.lr_max=2e-3
DEMO_RUN := lightning_logs/$(DEMO_NAME)

demo: demo/$(DEMO_NAME)/table.md
	@echo && cat $< && echo "The same with charts: $(dir $<)report.html; samples and pictures beside it"

$(DEMO_RUN)/trained: | $(READY)
	$(E2CRF) train $(DEMO_DATA) $(DEMO_MODEL) run_id=$(DEMO_NAME) \
	  resume=$(if $(wildcard $(DEMO_RUN)),true,false)
	touch $@

bundles/$(DEMO_NAME)/manifest.json: $(DEMO_RUN)/trained
	$(E2CRF) export $(DEMO_NAME) --overwrite
	$(E2CRF) verify bundles/$(DEMO_NAME)
	touch $@

# Without a plan within the budget (exit 1) the demo goes on with the default cache.
bundles/$(DEMO_NAME)/calibrated: bundles/$(DEMO_NAME)/manifest.json
	rm -f bundles/$(DEMO_NAME)/plan.json
	$(E2CRF) calibrate bundles/$(DEMO_NAME) --minutes 2 || test $$? -eq 1
	touch $@

demo/$(DEMO_NAME)/table.md: bundles/$(DEMO_NAME)/calibrated
	$(E2CRF) bench bundles/$(DEMO_NAME) --num-samples 64 --rounds 9 --quick --out $(dir $@) --json > /dev/null
	$(E2CRF) report bundles/$(DEMO_NAME) --out $(dir $@) > /dev/null

# --- keeping it good --------------------------------------------------------------------------------

test: $(READY)
	$(VENV)/bin/pytest

test-slow: $(READY)
	$(VENV)/bin/pytest -m slow

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
