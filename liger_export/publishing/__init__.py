"""Output directories: written as hidden siblings, then renamed, so that they are complete or absent at any moment."""

from liger_export.publishing.directories import new_directory, require_replaceable
from liger_export.publishing.records import RECORD_FILE

__all__ = ["RECORD_FILE", "new_directory", "require_replaceable"]
