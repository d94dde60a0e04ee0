PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check docs benchmarks clean

demo: $(INSTALLED)
	$(BIN)/lightning-ft fit --config recipes/sentiment.yaml
	$(BIN)/lightning-ft test --run last
	@echo
	@echo 'The same on your own CSV with the columns "text" and "label":'
	@echo '  $(BIN)/lightning-ft fit --config recipes/sentiment.yaml --data.train_file your.csv --data.where null'
	@echo '  $(BIN)/lightning-ft test --run last'
	@echo '  $(BIN)/lightning-ft predict --run last --data.predict_file new.csv'

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

benchmarks: $(INSTALLED)
	$(BIN)/python tests/benchmarks/throughput.py
	$(BIN)/python tests/benchmarks/sentiment.py

# Made again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml requirements-demo.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-demo.txt
	touch $@

clean:
	rm -rf .venv runs docs/_build
