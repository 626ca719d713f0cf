"""GPU kernels of the ``liger::`` operators, in Triton.

- ``shapes``: which layers the kernels compute;
- ``step``: one token, a layer a launch; ``chunk``: any number of tokens, five launches;
- ``linear``: linear layers of few tokens; ``candidates``: the largest logits; ``pointwise``: what is left;
- ``overlap``: how a kernel begins before the one before has ended;
- ``plans``: constants, warps and grids, one plan a kernel;
- ``launch``: the kernels as functions of torch tensors; ``register``: as the CUDA form of the operators;
- ``build``: compiled ahead of time for named GPUs, on any machine; ``prebuilt``: what the wheel carries of that;
  ``bundle``: builds as one tensor of a graph.

Importing any of these but the kernels themselves needs no Triton.
"""
