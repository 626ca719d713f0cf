"""PEFT's ``adapter_config.json``, read with an allow list.

A LoRA variant can change the meaning of the saved factors, or the base that they belong to, by a single field. So every
field that is not known to be harmless must be null, false, empty or the installed PEFT's default.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from liger_export.errors import AdapterError
from liger_export.files import read_json

__all__ = ["AdapterConfig", "read_object"]

CONFIG_FILE = "adapter_config.json"

Value = TypeVar("Value", int, float)

# Fields that do not change the meaning of saved factors, whatever their value. Fields that select the adapted weights
# are among them, because the names of the factors say which weights are adapted. ensure_weight_tying affects only
# adapters of embeddings, which have other factors.
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("runtime_config", "task_type"),
    *("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules", "target_parameters"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),  # used only with that init_lora_weights
    *("ensure_weight_tying", "lora_dropout", "megatron_core", "qalora_group_size"),
}
READ = {"alpha_pattern", "init_lora_weights", "lora_alpha", "r", "rank_pattern", "use_rslora"}
PLAIN_VALUES = {"bias": "none"}  # values of other fields that mean plain LoRA

# Values of init_lora_weights that leave the base weights unchanged, and those after which PEFT saves factors that
# belong to the changed base, unless it is told where the initial adapter is.
INITIAL_VALUES = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
CHANGED_BASE = re.compile(r"pissa(_niter_\d+)?|corda|olora|lora_ga")

# Features whose merged weights PEFT can compute and save as a checkpoint.
MERGED_BY_PEFT = {
    *("bias", "kasa_config", "modules_to_save", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora"),
    "velora_config",
}
TRAIN_PLAIN = "Train a plain LoRA adapter instead."
MERGE_WITH_PEFT = (
    "Merge the adapter with PEFT (merge_and_unload, then save_pretrained) and convert the merged checkpoint."
)
SAVE_DIFFERENCE = (
    "Save it again with save_pretrained(directory, path_initial_model_for_weight_conversion=initial), where initial is "
    "the directory of the adapter saved before training."
)


# Regular expressions of an adapter are matched with backtracking, whose time grows with each repetition, and
# exponentially with repetitions in repetitions.
NESTED = re.compile(r"\)[*+{]")
REPEATS = re.compile(r"[*+{]")
MOST_REPEATS = 3


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The fields of a LoRA adapter's config that the merged weights depend on.

    Attributes:
        file: path of the ``adapter_config.json``.
        rank: rank of the factors.
        alpha: numerator of the scale.
        use_rslora: divide alpha by the square root of the rank (arXiv 2312.03732) instead of by the rank.
        rank_pattern: ranks of some modules, by a regular expression for the end of the module's name.
        alpha_pattern: numerators of some modules, likewise.
    """

    file: Path
    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @classmethod
    def read(cls, directory: Path) -> "AdapterConfig":
        """Read the config of an adapter directory.

        Raises:
            AdapterError: it is missing or invalid, or uses a PEFT feature that cannot be merged.
        """
        file = directory / CONFIG_FILE
        values = read_object(file)
        if values.get("peft_type") != "LORA":
            raise AdapterError(
                f"{directory} is a {values.get('peft_type')} adapter.", "Only LoRA adapters can be merged."
            )
        _check_features(directory, values)
        _check_initialization(directory, values.get("init_lora_weights", True))
        ranks, alphas = values.get("rank_pattern") or {}, values.get("alpha_pattern") or {}
        rank, alpha = values.get("r", 0), values.get("lora_alpha", 0)
        if not _is_rank(rank) or not _is_number(alpha):
            raise AdapterError(f"{file} has r = {rank} and lora_alpha = {alpha}.", "Train again.")
        for name, pattern, is_valid in (("rank_pattern", ranks, _is_rank), ("alpha_pattern", alphas, _is_number)):
            if not isinstance(pattern, dict) or not all(is_valid(value) for value in pattern.values()):
                raise AdapterError(f"{file} has {name} = {pattern!r}.", "Restore the file, or train again.")
            if slow := [key for key in pattern if NESTED.search(key) or len(REPEATS.findall(key)) > MOST_REPEATS]:
                raise AdapterError(
                    f"{file} has {slow[0]!r} in {name}, a regular expression that could take forever.",
                    "List the names of the modules instead.",
                )
        if (ranks or alphas) and values.get("target_parameters"):
            raise AdapterError(
                f"{directory} combines target_parameters with rank_pattern or alpha_pattern, which is not supported.",
                MERGE_WITH_PEFT,
            )
        return cls(file, rank, alpha, bool(values.get("use_rslora")), ranks, alphas)

    def rank_of(self, module: str) -> int:
        """Rank of a module's factors. Raises AdapterError if patterns contradict each other."""
        return self._matching("rank_pattern", self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Factor of a module's product B A. Raises AdapterError if patterns contradict each other."""
        rank = self.rank_of(module)
        alpha = self._matching("alpha_pattern", self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _matching(self, field: str, pattern: Mapping[str, Value], module: str, default: Value) -> Value:
        """The value of the pattern that matches a module's name, as PEFT's ``get_pattern_key`` matches them.

        PEFT takes the first match, but saves patterns in another order than it trained with.
        """
        try:
            values = {value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)}
        except re.error as error:
            raise AdapterError(
                f"{self.file} has an invalid regular expression in {field} ({error}).", "Restore the file."
            ) from error
        if len(values) > 1:
            raise AdapterError(
                f"{self.file} has several entries of {field} that match {module}, with different values.",
                "Keep only the entry that the adapter was trained with.",
            )
        return next(iter(values), default)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from an adapter's file. Raises AdapterError."""
    try:
        values = read_json(path)
    except OSError:
        raise AdapterError(f"{path} is missing.", "Pass the directory in which PEFT saved the adapter.") from None
    except ValueError as error:
        raise AdapterError(f"{path} is not valid JSON ({error}).", "Restore the file.") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{path} does not contain a JSON object.", "Restore the file.")
    return values


def _check_features(directory: Path, values: Mapping[str, Any]) -> None:
    """Check that every field of unknown effect is switched off. Raises AdapterError, naming the others."""
    used = [name for name, value in values.items() if name not in HARMLESS | READ and not _is_off(name, value)]
    if used:
        unmergeable = sorted(set(used) - MERGED_BY_PEFT)
        raise AdapterError(
            f"{directory} uses {', '.join(sorted(used))}, which is not supported.",
            TRAIN_PLAIN if unmergeable else MERGE_WITH_PEFT,
        )


def _check_initialization(directory: Path, value: object) -> None:
    """Check that PEFT saved factors for the unchanged base. Raises AdapterError."""
    name = str(value).lower()
    if name in INITIAL_VALUES:
        return
    if CHANGED_BASE.fullmatch(name):
        raise AdapterError(
            f"{directory} was trained with init_lora_weights = {value!r}, which changes the base weights. Its factors "
            "do not fit the original base.",
            SAVE_DIFFERENCE,
        )
    raise AdapterError(
        f"{directory} was trained with init_lora_weights = {value!r}, which is not supported.",
        "Train an adapter with init_lora_weights=True.",
    )


def _is_off(name: str, value: object) -> bool:
    """Return true for a value that leaves a feature unused."""
    if value is None or value is False or value in ("", [], {}) or value == PLAIN_VALUES.get(name):
        return True
    from peft import LoraConfig  # slow to import, and only configs of newer PEFT versions get here

    defaults = LoraConfig().to_dict()
    return name in defaults and bool(value == defaults[name])


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
