PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
CONFORMANCE := .conformance/venv

.PHONY: demo test check docs benchmarks conformance clean

demo: $(INSTALLED)
	$(BIN)/lightning-ft fit --config recipes/sentiment.yaml
	$(BIN)/lightning-ft test --run last
	@echo
	@echo 'The same on your own CSV with the columns "text" and "label":'
	@echo '  $(BIN)/lightning-ft fit --config recipes/sentiment.yaml --data.train_file your.csv --data.where null'
	@echo '  $(BIN)/lightning-ft test --run last'
	@echo '  $(BIN)/lightning-ft predict --run last --data.predict_file new.csv'

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

benchmarks: $(CONFORMANCE)/installed
	$(BIN)/python tests/benchmarks/throughput.py
	$(BIN)/python tests/benchmarks/sentiment.py
	$(BIN)/python tests/benchmarks/unfreezing_speed.py
	$(CONFORMANCE)/bin/python tests/benchmarks/unfreezing.py
	$(BIN)/python tests/benchmarks/plan_memory.py
	$(BIN)/python tests/benchmarks/packing.py
	$(BIN)/python tests/benchmarks/task_speed.py
	$(BIN)/python tests/benchmarks/baselines.py
	$(BIN)/python tests/benchmarks/lr_finder_cost.py
	$(BIN)/python tests/benchmarks/lr_regret.py

# Other tools stay out of the environment that the tests run in; what both need is seen, not installed twice.
conformance: $(CONFORMANCE)/installed
	$(CONFORMANCE)/bin/python tests/conformance/peers docs/conformance.md

$(CONFORMANCE)/installed: $(INSTALLED) tests/conformance/peers/requirements.txt
	$(BIN)/python -m venv $(CONFORMANCE)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > "$$($(CONFORMANCE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth"
	$(CONFORMANCE)/bin/python -m pip install --quiet --no-deps --requirement tests/conformance/peers/requirements.txt
	touch $@

# Made again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml requirements-demo.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-demo.txt
	touch $@

clean:
	rm -rf .venv runs docs/_build
