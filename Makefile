# make demo: set up, then the main job on the model that ships with the repository.
# make test: set up, then lint, types and tests.
# make wheel: set up, compile the GPU kernels of the default shapes, and build a wheel that carries them.

PYTHON ?= python3
BIN := .venv/bin
EXAMPLE := examples/pycode-7m

.PHONY: demo test wheel format clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/.installed
	rm -rf demo
	$(BIN)/liger-export linearize $(EXAMPLE)/base -o demo/liger
	$(BIN)/liger-export convert demo/liger --adapter $(EXAMPLE)/adapter -o demo/package
	$(BIN)/liger-export validate demo/package --reference demo/liger --adapter $(EXAMPLE)/adapter --text $(EXAMPLE)/heldout
	$(BIN)/liger-export inspect demo/package
	$(BIN)/liger-export run demo/package 'def read_lines(path' -n 64

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --dist worksteal

# A wheel with compiled kernels for the default shapes (kernels/prebuilt.py); without the second line, one without any.
wheel: .venv/.installed
	$(BIN)/python -m liger_export.kernels.prebuilt
	$(BIN)/python -m build --wheel

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo build dist *.egg-info
