"""The package an app opens: graph, weights, tokenizer and manifest. Importing it loads no torch.

``liger_export.convert`` writes packages; it needs the exporter's extra.
"""

from liger_export.package.manifest import (
    FUSED,
    FUSED_CUDA,
    MANIFEST_FILE,
    MODEL_FILES,
    PORTABLE,
    REPORT_FILE,
    STOCK,
    Graph,
    Manifest,
    read_manifest,
)

__all__ = [
    "FUSED",
    "FUSED_CUDA",
    "MANIFEST_FILE",
    "MODEL_FILES",
    "PORTABLE",
    "REPORT_FILE",
    "STOCK",
    "Graph",
    "Manifest",
    "read_manifest",
]
