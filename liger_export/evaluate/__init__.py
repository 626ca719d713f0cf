"""Next-token metrics of base checkpoints, Liger checkpoints and packages, all measured the same way."""

from liger_export.evaluate.models import DTYPES, EvaluatedModel, open_model
from liger_export.evaluate.run import Evaluation, evaluate, report_json, text_blocks

__all__ = ["DTYPES", "EvaluatedModel", "Evaluation", "evaluate", "open_model", "report_json", "text_blocks"]
