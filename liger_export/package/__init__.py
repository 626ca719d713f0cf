"""The package an app opens: graph, weights, tokenizer and manifest. Importing it loads no torch.

``liger_export.package.build`` writes packages; it needs the exporter's extra.
"""

from liger_export.package.manifest import MANIFEST_FILE, MODEL_FILE, REPORT_FILE, Manifest, read_manifest

__all__ = ["MANIFEST_FILE", "MODEL_FILE", "REPORT_FILE", "Manifest", "read_manifest"]
