"""The ``liger`` operators in ONNX: a schema for each operator, and a function body for each lowering.

A traced graph holds one node per layer for Liger attention, for example ``liger::GLAAttention``. A lowering gives the
node its meaning: it adds a model-local function of the same name, whose body uses operators that the engine has.
``stock`` bodies use what an unmodified ONNX Runtime ships, ``portable`` bodies only ai.onnx.
"""
