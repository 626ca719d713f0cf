"""Quantization of weights to integers: without data (``blocks``, ``source``) or by GPTQ (``gptq``, ``calibrated``)."""
