"""GPU kernels of the ``liger::`` operators, in Triton.

- ``shapes``: which layers the kernels compute;
- ``step``: one token, a layer a launch; ``chunk``: any number of tokens, five launches;
- ``launch``: the kernels as functions of torch tensors.

Importing any of these but the kernels themselves needs no Triton.
"""
