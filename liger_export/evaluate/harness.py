"""Packages as models of lm-evaluation-harness. Requires the ``eval`` extra.

The harness's own command knows only the harness's models. This module runs that command with ``liger-export`` added:

    python -m liger_export.evaluate.harness run --model liger-export --model_args package=PATH \\
        --tasks lambada_openai,hellaswag

All options of the harness work; ``--include_path DIR`` adds your own tasks. From Python, pass a ``PackageLM`` as
``model`` to ``lm_eval.simple_evaluate``, or call ``register`` and pass the name ``liger-export``.
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
from liger_export.runtime.prompt import PromptEncoder

__all__ = ["PackageLM", "main", "register"]

NAME = "liger-export"
PIECE = 512  # tokens per call, to bound memory
# Names that tasks use for the number of tokens to generate.
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Logits = npt.NDArray[np.float32]


class PackageLM(TemplateLM):  # type: ignore[misc]
    """A package as a model of the harness. It reads one text at a time, of any length, and never truncates.

    Texts are encoded with the special tokens that the package's tokenizer adds, as in ``Session.generate``.
    ``loglikelihood_rolling`` starts from the BOS token and scores each token of the text once.

    Args:
        package: package directory.
        threads: number of ONNX Runtime threads; default: ONNX Runtime's choice.
        max_gen_toks: tokens to generate if a task sets no limit.
        batch_size: 1 or an equivalent that the harness may pass: None, "1" or "auto".
        max_batch_size: ignored; the harness passes it.
        device: ignored; the harness passes its own choice.

    Raises:
        PackageError: the package is damaged.
        InputError: ``batch_size`` is not 1.
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
            raise InputError(f"batch_size is {batch_size}.", "Omit it: a package reads one text at a time.")
        self._session = load(package, threads=threads)
        self._prompts = PromptEncoder(self._session.tokenizer)
        self._max_gen_toks = max_gen_toks
        self._context: tuple[list[int], SavedState, Logits] | None = None  # last one read: tokens, state, next logits
        self._drawn = 0

    @property
    def eot_token_id(self) -> int:
        """The EOS token; the BOS token if there is no EOS token."""
        config = self._session.manifest.model_config
        return next(iter(config.eos_token_ids), config.bos_token_id or 0)

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes a text without context: the BOS token, or the EOS token if there is no BOS token."""
        bos = self._session.manifest.model_config.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text, by default with the BOS token that the tokenizer adds, unless the text starts with it.

        Special tokens in the text are parsed, as transformers does.
        """
        adds = add_special_tokens is None or add_special_tokens
        return self._prompts.encode(string, add_special_tokens=adds, parse_special_tokens=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood after its context, and True if greedy decoding would produce it."""
        results = []
        for arguments, context, continuation in tqdm(requests, disable=disable_tqdm, desc="loglikelihood"):
            result = self._score(self._read_context(context or [self.prefix_token_id]), continuation)
            results.append(result)
            if arguments is not None:
                self.cache_hook.add_partial("loglikelihood", arguments, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text."""
        results = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm, desc="loglikelihood_rolling"):
            tokens = self.tok_encode(text, add_special_tokens=False)
            result, _ = self._score(self._read_context([self.prefix_token_id]), tokens)
            results.append(result)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each text up to a stop string. Decoding is greedy unless a task sets a temperature."""
        results = []
        for context, options in tqdm([request.args for request in requests], disable=disable_tqdm, desc="generate"):
            until, limits = options.get("until") or [], [options[name] for name in TOKEN_LIMITS if name in options]
            self._session.reset()
            pieces = self._session.generate(
                context,
                parse_special_tokens=True,
                max_new_tokens=int(limits[0]) if limits else self._max_gen_toks,
                sampling=self._sampling(options),
                stop=[string for string in ([until] if isinstance(until, str) else until) if string],
            )
            results.append("".join(pieces))
            self.cache_hook.add_partial("generate_until", (context, options), results[-1])
        return results

    def _read_context(self, tokens: list[int]) -> Logits:
        """Move the session to the end of a context and return its next-token logits; continuations share it."""
        if self._context is not None and self._context[0] == tokens:
            self._session.load_state(self._context[1])
        else:
            self._session.reset()
            logits = self._session.prefill(tokens)
            self._context = tokens, self._session.state(), logits
        return self._context[2]

    def _score(self, logits: Logits, tokens: list[int]) -> tuple[float, bool]:
        """Return the log-likelihood of tokens that follow the context, and True if each is the argmax.

        Args:
            logits: logits after the last token read, [vocab_size].
            tokens: the continuation; the session reads all but its last token.
        """
        loss, top1_correct, scored, to_read = 0.0, 0, 0, tokens[:-1]
        pieces = (to_read[start : start + PIECE] for start in range(0, len(to_read), PIECE))
        for rows in chain([logits[None]] if tokens else [], map(self._session.all_logits, pieces)):
            expected = torch.tensor([tokens[scored : scored + len(rows)]])
            sums = losses_and_top1(torch.from_numpy(rows)[None], expected).sum(1)
            loss, top1_correct, scored = loss + float(sums[0]), top1_correct + int(sums[1]), scored + len(rows)
        return -loss, top1_correct == len(tokens)

    def _sampling(self, options: dict[str, Any]) -> Sampling:
        """Return the task's sampling settings. Each text gets its own seed, and the seeds are the same in every run."""
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
    """Add ``liger-export`` to the harness's models. Repeated calls have no effect."""
    import lm_eval.models  # noqa: F401  # the harness adds its own models only if none is registered yet
    from lm_eval.api.registry import register_model

    register_model(NAME)(PackageLM)


def main() -> None:
    """Run the harness's command line with ``liger-export`` among its models."""
    from lm_eval.__main__ import cli_evaluate

    register()
    try:
        cli_evaluate()
    except LigerExportError as error:
        sys.stderr.write(f"error: {error.cause}\nfix:   {error.fix}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
