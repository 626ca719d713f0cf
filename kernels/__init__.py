"""GPU kernels of the ``liger::`` operators, in Triton.

- ``shapes``: which layers the kernels compute;
- ``step``: one token, a layer a launch; ``chunk``: any number of tokens, five launches;
- ``pointwise``: what a fused graph needs beside attention; ``candidates``: the largest logits;
- ``plans``: constants, warps and grids, one plan a kernel;
- ``launch``: the kernels as functions of torch tensors; ``register``: as the CUDA form of the operators;
- ``build``: compiled ahead of time for named GPUs, on any machine; ``prebuilt``: what the wheel carries of that;
  ``bundle``: builds as one tensor of a graph.

Importing any of these but the kernels themselves needs no Triton.
"""
