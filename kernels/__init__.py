"""GPU kernels of the ``liger::`` operators, in Triton.

Kernels:

- ``step``: one token of a layer's attention in one launch; ``batched``: the same for large batches;
- ``chunkwise`` and ``window``: attention for several tokens in five launches; ``slots``: the first pass of gsa;
- ``chunk_states``: states of long calls; ``chunkwise_backward``, ``window_backward`` and ``projection_backward``:
  gradients;
- ``linear``: linear layers for few tokens; ``top_logits``: the largest logits; ``pointwise``: everything else;
- ``features`` and ``dependent_launch``: functions that the kernels share.

Around them:

- ``shapes``: layer shapes that the kernels support; ``plans``: constants, warps and grid of each kernel;
- ``launch`` and ``gradients``: the kernels as functions of torch tensors; ``register``: as CUDA operators of PyTorch;
- ``targets``, ``arguments``, ``compiler``, ``build``: ahead-of-time compilation for named GPUs, on any machine;
- ``prebuilt``: kernels that a wheel carries; ``bundle``: builds as one tensor of a graph.

Only the modules with kernels need Triton to be imported.
"""
