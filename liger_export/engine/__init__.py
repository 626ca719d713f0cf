"""Engines from packages: the same state contract, built for named devices.

``liger_export.engine.build`` needs the exporter's extra; each backend's module needs the backend's library.
"""
