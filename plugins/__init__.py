"""Native code for engines: ``ort`` holds ONNX Runtime's custom operators, ``tensorrt`` TensorRT's plugins."""
