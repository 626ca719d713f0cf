"""Rounding weights to integers: per block (``blocks``), or calibrated by GPTQ on text (``gptq``, ``calibrated``)."""
