"""A server with OpenAI's interface, which never reads again what it has read. Imports no PyTorch."""

from liger_export.serve.app import create_app
from liger_export.serve.models import ServedModel
from liger_export.serve.server import serve
from liger_export.serve.settings import ServeSettings

__all__ = ["ServeSettings", "ServedModel", "create_app", "serve"]
