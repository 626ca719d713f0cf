"""Native code for engines: ``ort`` holds ONNX Runtime's custom operators."""
