"""Default sampling of a package, from its ``generation_config.json``, which is read as transformers reads it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liger_export.errors import InputError, PackageError
from liger_export.files import read_json
from liger_export.runtime.sampling import Sampling

__all__ = ["GENERATION_CONFIG", "GenerationDefaults", "read_defaults"]

GENERATION_CONFIG = "generation_config.json"
TOP_K = 50  # of transformers, where a model samples and its file does not say
# Settings that change which tokens are chosen and have no counterpart in Sampling. They do nothing at these values.
NEUTRAL_AT_1 = ("num_beams", "num_beam_groups", "encoder_repetition_penalty", "guidance_scale")
NEUTRAL_IF_EMPTY = (
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "stop_strings"),
    *("bad_words_ids", "force_words_ids", "constraints", "sequence_bias", "suppress_tokens", "begin_suppress_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "penalty_alpha"),
    *("dola_layers", "watermarking_config", "token_healing"),
)
SAMPLED_NEUTRAL_AT_1 = ("typical_p",)  # the others only matter if the model samples
SAMPLED_NEUTRAL_IF_EMPTY = ("epsilon_cutoff", "eta_cutoff", "top_h")


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Defaults of a package's ``generation_config.json``. Its limits of length are not used.

    End-of-text tokens are in the manifest's config, where ``convert`` puts those of this file.

    Attributes:
        sampling: How to choose tokens: as the file says if it sets ``do_sample``, otherwise greedy. Filters are kept
            then, for a caller that sets a temperature.
        ignored: Settings of the file that change which tokens are chosen, and that the runtime does not have.
    """

    sampling: Sampling = field(default_factory=Sampling)
    ignored: Mapping[str, object] = field(default_factory=dict)


def read_defaults(directory: Path) -> GenerationDefaults:
    """Read a directory's ``generation_config.json``. Without the file, decoding is greedy.

    Raises:
        PackageError: The file is damaged, or a value is out of range.
    """
    path = directory / GENERATION_CONFIG
    if not path.is_file():
        return GenerationDefaults()
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} cannot be read ({error}).", "Copy or convert the package again.") from error
    try:
        return _parse({name: value for name, value in values.items() if value is not None})
    except InputError as error:
        raise PackageError(
            f"{path}: {error.cause}", f"{error.fix} Correct it, and convert the checkpoint again."
        ) from error


def _parse(values: dict[str, Any]) -> GenerationDefaults:
    samples = values.get("do_sample", False)
    if not isinstance(samples, bool):
        raise InputError(f"do_sample is {samples!r}.", "It must be true or false.")
    sampling = Sampling(
        repetition_penalty=_number(values, "repetition_penalty", 1.0),
        temperature=_number(values, "temperature", 1.0) if samples else 0.0,
        top_k=_integer(values, "top_k", TOP_K if samples else 0),
        top_p=_number(values, "top_p", 1.0),
        min_p=_number(values, "min_p", 0.0),
    )
    at_1 = NEUTRAL_AT_1 + (SAMPLED_NEUTRAL_AT_1 if samples else ())
    if_empty = NEUTRAL_IF_EMPTY + (SAMPLED_NEUTRAL_IF_EMPTY if samples else ())
    ignored = {name: values[name] for name in at_1 if values.get(name, 1) != 1}
    return GenerationDefaults(sampling, ignored | {name: values[name] for name in if_empty if values.get(name)})


def _number(values: dict[str, Any], name: str, default: float) -> float:
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}.", "It must be a number.")
    return float(value)


def _integer(values: dict[str, Any], name: str, default: int) -> int:
    value = values.get(name, default)
    if type(value) is not int:
        raise InputError(f"{name} is {value!r}.", "It must be an integer.")
    return value
