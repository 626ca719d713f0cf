"""Engine building: from a package to graphs or engines for named devices, with the same state contract.

``liger_export.engine.build`` needs the ``export`` extra. The module of each backend needs that backend's library.
"""
