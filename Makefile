# The same few verbs everywhere; CI calls them too. `make demo` and `make test` set up all they need.
#
#   make demo [DATA=folder-of-the-ECG-files]     make export MODEL=latest [BUNDLE=dir]
#   make test                                    make sample MODEL=latest [N=64] [OUT=samples.npz]
#   make check                                   make calibrate MODEL=latest
#                                                make bench MODEL=latest [OLD=record.json]
#                                                make report [RECORDS=files] [REPORT=folder]
#   make paper SET=nasdaq DATA=folder            make engine MODEL=latest [PARTS=step|split|all] [FLAVOR=rtx|tensorrt]
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
SET ?= nasdaq
NAMED := $(or $(BUNDLE),$(MODEL))

.PHONY: install demo paper export verify engine calibrate sample bench report gpu-check test test-slow check format clean

install: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard runtime/backends/few_tokens.[ch])
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

SMALL := score_model.num_layers=4 score_model.n_head=4 score_model.d_ff=288 score_model.dropout=0.0 score_model.lr_max=2e-3
DEMO := $(if $(DATA),demo-ecg,demo-gunpoint)
TRAIN_demo-ecg := datamodule=ecg datamodule.batch_size=32 trainer.max_epochs=45 $(SMALL)
TRAIN_demo-gunpoint := datamodule=ucr datamodule.name=GunPoint datamodule.batch_size=25 trainer.max_epochs=1000 \
  trainer.check_val_every_n_epoch=100 score_model.energy_weighting=0.5 $(SMALL)

demo: demo/$(DEMO)/table.md
	@echo && cat $< && echo "The same with charts: $(dir $<)report.html; samples and pictures beside it"

demo/%/table.md: bundles/%/calibrated
	$(E2CRF) bench bundles/$* --num-samples 64 --rounds 9 --quick --out $(dir $@) --json > /dev/null
	$(E2CRF) report bundles/$* --out $(dir $@) > /dev/null

# --- a data set of the paper, from its raw files to the record behind the README's table --------------
#
# Two cores take half an hour for NASA discharge, an hour for NASDAQ, and hours for ECG, most of them for the uncached
# samples. Leave the machine alone while the bench runs, which comes last. Small sets are judged by their training
# series, since few are held out. TRAIN takes more overrides:
# TRAIN='datamodule.start_date=2017-01-01 datamodule.end_date=2018-01-01' for droughts of these days.

PAPER := paper-$(SET)
TRAIN_paper-ecg := datamodule=ecg datamodule.batch_size=16 trainer.max_epochs=135 trainer.precision=bf16-mixed \
  score_model.dropout=0.0
TRAIN_paper-nasdaq := datamodule=nasdaq datamodule.batch_size=32 trainer.max_epochs=500 $(SMALL)
TRAIN_paper-nasa-charge := datamodule=nasa datamodule.subdataset=charge datamodule.batch_size=32 \
  trainer.max_epochs=1200 $(SMALL)
TRAIN_paper-nasa-discharge := datamodule=nasa datamodule.subdataset=discharge datamodule.batch_size=32 \
  trainer.max_epochs=700 $(SMALL)
TRAIN_paper-usdroughts := datamodule=usdroughts datamodule.batch_size=32 trainer.max_epochs=2000 $(SMALL)
PAPER_SAMPLES ?= $(if $(filter usdroughts,$(SET)),256,1000)
PAPER_PART := $(if $(filter ecg,$(SET)),test,train)
PAPER_SLOW := $(if $(filter ecg,$(SET)),32,48)# samples of ways that ask the network at most steps

paper: bundles/$(PAPER)/reports/bench.json

bundles/%/uncached.npz: bundles/%/manifest.json
	$(E2CRF) sample bundles/$* --uncached --num-samples $(PAPER_SAMPLES) --overwrite --out $@

bundles/%/reports/bench.json: bundles/%/calibrated bundles/%/uncached.npz
	$(E2CRF) bench bundles/$* --part $(PAPER_PART) --num-samples $(PAPER_SAMPLES) --uncached bundles/$*/uncached.npz \
	  --num-uncached $(PAPER_SLOW)

# --- what both have in common: a model and its plan ---------------------------------------------------

lightning_logs/%/trained: | $(READY)
	$(if $(TRAIN_$*),,$(error SET must be one of ecg, nasdaq, nasa-charge, nasa-discharge and usdroughts, found '$(SET)'))
	$(E2CRF) train $(TRAIN_$*) $(if $(DATA),'datamodule.data_dir="$(DATA)"') $(TRAIN) run_id=$* \
	  resume=$(if $(wildcard lightning_logs/$*),true,false)
	touch $@

bundles/%/manifest.json: lightning_logs/%/trained
	$(E2CRF) export $* --overwrite
	$(E2CRF) verify bundles/$*
	touch $@

# Without a plan within the budget (exit 1) it goes on with the default cache.
bundles/%/calibrated: bundles/%/manifest.json
	rm -f bundles/$*/plan.json
	$(E2CRF) calibrate bundles/$* $(if $(filter demo-%,$*),--minutes 2) || test $$? -eq 1
	touch $@

.SECONDARY: # none of these files is a passing one

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
	rm -rf $(VENV) build *.egg-info runtime/backends/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
