"""Plugins for engines that need native code. Empty so far: the stock lowering needs none."""
