"""The ONNX form of each ``liger`` operator: a schema for the traced node, and a function body for each lowering."""
