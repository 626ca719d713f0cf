"""Quantization of weights to integers: without data (``blocks``, ``source``) or with it (``calibrated``)."""
