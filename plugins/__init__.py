"""Native code for inference engines: ``ort`` has operators for ONNX Runtime, ``tensorrt`` plugins for TensorRT."""
