"""Plugins for engines that take native code."""
