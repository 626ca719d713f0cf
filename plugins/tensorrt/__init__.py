"""Liger attention as ahead-of-time plugins for TensorRT 10.13 and newer: one token of GLA or HGRN2 per node."""

from liger_export.plugins.tensorrt.kernel import PluginKernel, fitting_tactics, plugin_kernel, tactics
from liger_export.plugins.tensorrt.registration import register_plugins

__all__ = ["PluginKernel", "fitting_tactics", "plugin_kernel", "register_plugins", "tactics"]
