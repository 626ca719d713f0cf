"""The contents of a package, as its manifest describes them: graphs, weights and tokenizer. Imports no torch.

``liger_export.convert`` writes packages and needs the ``export`` extra.
"""

from liger_export.package.manifest import (
    FLOAT32_REACH,
    FUSED,
    FUSED_CUDA,
    MANIFEST_FILE,
    MODEL_FILES,
    ONE_SEQUENCE,
    PORTABLE,
    PREFIX_FILE,
    REPORT_FILE,
    STANDARD,
    STOCK,
    WASM,
    WEBGPU,
    Graph,
    Manifest,
    read_manifest,
)

__all__ = [
    "FLOAT32_REACH",
    "FUSED",
    "FUSED_CUDA",
    "MANIFEST_FILE",
    "MODEL_FILES",
    "ONE_SEQUENCE",
    "PORTABLE",
    "PREFIX_FILE",
    "REPORT_FILE",
    "STANDARD",
    "STOCK",
    "WASM",
    "WEBGPU",
    "Graph",
    "Manifest",
    "read_manifest",
]
