"""The commands of ``liger-export``, one module per group, with the options and terminal output that they share.

A command imports the library inside its function: ``--help`` and ``run`` must not wait for PyTorch.
"""
