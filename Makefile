# make demo:   set up, then take the model that ships with the repository through the main path.
# make check:  set up, then lint, types and the fast tests, in under 3 minutes on 2 cores. Run it before every commit.
# make test:   set up, then lint, types and every test. CI runs it.
# make fuzz:   set up, then call the C++ operators with 10,000 random and damaged inputs, with sanitizers.
# make wheel:  set up, compile the GPU kernels of the default shapes, and build a wheel that contains them.
# make format: apply ruff's fixes and formatting.
#
# Without a GPU, set up with the smaller CPU build of PyTorch:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
EXAMPLE := examples/pycode-7m

.PHONY: demo check test fuzz lint wheel format clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	touch $@

demo: .venv/.installed
	rm -rf demo
	$(BIN)/liger-export linearize $(EXAMPLE)/base -o demo/liger
	$(BIN)/liger-export convert demo/liger --adapter $(EXAMPLE)/adapter -o demo/package
	$(BIN)/liger-export validate demo/package --reference demo/liger --adapter $(EXAMPLE)/adapter --text $(EXAMPLE)/heldout
	$(BIN)/liger-export inspect demo/package
	$(BIN)/liger-export run demo/package 'def read_lines(path' -n 64
	@echo
	@echo 'The command is $(CURDIR)/$(BIN)/liger-export; "source $(BIN)/activate" makes it available as liger-export.'
	@echo 'Next: "Your own model" in README.md.'

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/pytest -n auto --dist worksteal -m 'not slow'

test: lint
	$(BIN)/pytest -n auto --dist worksteal

fuzz: .venv/.installed
	$(BIN)/python -m tests.fuzz.operators --cases 10000

# The second line compiles the kernels of the default shapes (kernels/prebuilt.py). Without it the wheel has none.
wheel: .venv/.installed
	$(BIN)/python -m liger_export.kernels.prebuilt
	$(BIN)/python -m build --wheel

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo build dist *.egg-info
