"""Packages in lm-evaluation-harness, which needs the ``eval`` extra.

The harness knows its own models only, so its command runs through this module, which adds ``liger-export``:

    python -m liger_export.evaluate.harness run --model liger-export --model_args package=PATH \\
        --tasks lambada_openai,hellaswag

All of the harness's options work; ``--include_path DIR`` adds tasks of one's own. From Python, pass a ``PackageLM`` as
``model`` to ``lm_eval.simple_evaluate``, or call ``register`` and pass its name.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from liger_export.errors import InputError, LigerExportError
from liger_export.metrics import losses_and_top1
from liger_export.runtime import Sampling, SavedState, load

__all__ = ["PackageLM", "main", "register"]

NAME = "liger-export"
PIECE = 512  # tokens read at once, which bounds memory
MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # what tasks call it

Logits = npt.NDArray[np.float32]


class PackageLM(TemplateLM):  # type: ignore[misc]
    """A package as a model of the harness. It reads one text at a time, of any length: nothing is ever truncated.

    Texts are encoded with the tokens that the package's tokenizer adds, as ``Session.generate`` does.
    ``loglikelihood_rolling`` conditions on one opening token, and scores each token of the text once.

    Args:
        package: package directory.
        threads: ONNX Runtime's threads; default: it chooses.
        max_gen_toks: tokens to generate where a task does not say.
        batch_size: 1, or what else the harness may pass for it.
        max_batch_size: not used; the harness passes it.
        device: not used; the harness passes its own choice.

    Raises:
        PackageError: the package is damaged.
        InputError: another batch size is asked for.
    """

    max_length = sys.maxsize

    def __init__(
        self,
        package: str | Path,
        *,
        threads: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size not in (None, 1, "1", "auto"):
            raise InputError(f"batch_size is {batch_size}.", "A package reads one text at a time: leave it at 1.")
        self._session = load(package, threads=threads)
        self._max_gen_toks = max_gen_toks
        self._context: tuple[list[int], SavedState, Logits] | None = None  # read last: tokens, state, next logits
        self._drawn = 0

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, or where there is none the opening one."""
        config = self._session.manifest.model_config
        return next(iter(config.eos_token_ids), config.bos_token_id or 0)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the opening token, or where there is none the end-of-text one."""
        opening = self._session.manifest.model_config.bos_token_id
        return self.eot_token_id if opening is None else opening

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; by default with the tokenizer's opening token, unless the text spells it out."""
        tokenizer = self._session.tokenizer
        if add_special_tokens is None:
            opening = tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (opening and string.startswith(opening))
        ids: list[int] = tokenizer.encode(string, add_special_tokens=add_special_tokens).ids
        return ids

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether greedy decoding would write it."""
        results = []
        for arguments, context, continuation in tqdm(requests, disable=disable_tqdm, desc="loglikelihood"):
            result = self._score(self._read_context(context or [self.prefix_token_id]), continuation)
            results.append(result)
            if arguments is not None:
                self.cache_hook.add_partial("loglikelihood", arguments, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text."""
        results = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm, desc="loglikelihood_rolling"):
            tokens = self.tok_encode(text, add_special_tokens=False)
            result, _ = self._score(self._read_context([self.prefix_token_id]), tokens)
            results.append(result)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each text until a stop string; greedily, unless a task asks for a temperature."""
        results = []
        for context, options in tqdm([request.args for request in requests], disable=disable_tqdm, desc="generate"):
            until, most = options.get("until") or [], [options[name] for name in MOST_TOKENS if name in options]
            self._session.reset()
            pieces = self._session.generate(
                context,
                max_new_tokens=int(most[0]) if most else self._max_gen_toks,
                sampling=self._sampling(options),
                stop=[until] if isinstance(until, str) else until,
            )
            results.append("".join(pieces))
            self.cache_hook.add_partial("generate_until", (context, options), results[-1])
        return results

    def _read_context(self, tokens: list[int]) -> Logits:
        """Bring the session to the end of a context, which several continuations share; returns the logits there."""
        if self._context is not None and self._context[0] == tokens:
            self._session.load_state(self._context[1])
        else:
            self._session.reset()
            logits = self._session.prefill(tokens)
            self._context = tokens, self._session.state(), logits
        return self._context[2]

    def _score(self, logits: Logits, tokens: list[int]) -> tuple[float, bool]:
        """Log-likelihood of tokens that follow what has been read, and whether each is the likeliest.

        Args:
            logits: after the last token read, [vocab_size].
            tokens: what follows; the session reads all but the last.
        """
        loss, hits, scored, to_read = 0.0, 0, 0, tokens[:-1]
        pieces = (to_read[start : start + PIECE] for start in range(0, len(to_read), PIECE))
        for rows in chain([logits[None]] if tokens else [], map(self._session.all_logits, pieces)):
            wanted = torch.tensor([tokens[scored : scored + len(rows)]])
            sums = losses_and_top1(torch.from_numpy(rows)[None], wanted).sum(1)
            loss, hits, scored = loss + float(sums[0]), hits + int(sums[1]), scored + len(rows)
        return -loss, hits == len(tokens)

    def _sampling(self, options: dict[str, Any]) -> Sampling:
        """As the task says; each text drawn differently, and each run the same."""
        temperature = float(options.get("temperature") or 0.0)
        if not options.get("do_sample", temperature > 0):
            return Sampling()
        self._drawn += 1
        return Sampling(
            temperature=temperature,
            top_k=int(options.get("top_k") or 0),
            top_p=float(options.get("top_p") or 1.0),
            seed=self._drawn,
        )


def register() -> None:
    """Make the harness know ``liger-export`` beside its own models. Calling it again is harmless."""
    import lm_eval.models  # noqa: F401  # the harness adds its own only while there are none
    from lm_eval.api.registry import register_model

    register_model(NAME)(PackageLM)


def main() -> None:
    """The harness's command line, with ``liger-export`` among its models."""
    from lm_eval.__main__ import cli_evaluate

    register()
    try:
        cli_evaluate()
    except LigerExportError as error:
        sys.stderr.write(f"error: {error.cause}\nfix:   {error.fix}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
