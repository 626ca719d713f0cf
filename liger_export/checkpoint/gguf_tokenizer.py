"""The tokenizer of a GGUF file, built to give the same tokens as llama.cpp with special tokens in the text.

A GGUF file contains the vocabulary and merges, and names the rule that splits text before merging
(``tokenizer.ggml.pre``). Only rules whose tokens were compared with llama.cpp's are accepted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from liger_export.checkpoint.gguf_file import DOWNLOAD
from liger_export.checkpoint.gguf_metadata import Metadata
from liger_export.errors import CheckpointError, UnsupportedModelError

__all__ = ["GgufTokenizer", "read_gguf_tokenizer"]

PREFIX = "tokenizer.ggml"
CHAT_TEMPLATE = "tokenizer.chat_template"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # values of token_type
MAX_TOKEN = 4096  # characters; long tokens would make finding merges slow
SPACE = "\u2581"  # sentencepiece's sign for a space

# Control tokens after which llama.cpp stops, whether or not the file lists them.
ENDS = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "</s>"}
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level])


def _single_digits() -> PreTokenizer:
    """GPT-2's rule after splitting off each digit, as StarCoder and SmolLM do."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


@dataclass(frozen=True, slots=True)
class Rule:
    """A way of splitting text, and llama.cpp's settings for it.

    Attributes:
        split: makes the pre-tokenizer.
        whole_words: a piece of text that is itself a token is not built by merges.
        add_bos: default of ``tokenizer.ggml.add_bos_token``.
    """

    split: Callable[[], PreTokenizer]
    whole_words: bool = False
    add_bos: bool = False


LLAMA3 = Rule(lambda: _split(LLAMA3_SPLIT), whole_words=True, add_bos=True)
QWEN2 = Rule(lambda: _split(QWEN2_SPLIT))
RULES = {
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "smollm": Rule(_single_digits),
    "tekken": Rule(lambda: _split(TEKKEN_SPLIT), whole_words=True, add_bos=True),
}


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A tokenizer and what Hugging Face's files say about it.

    Attributes:
        tokenizer: the tokenizer.
        config: the values of ``tokenizer_config.json``.
        bos_token_id: the first token of a text; None if the file names none.
        eos_token_ids: tokens that end a text or a turn.
        chat_template: the chat template; None if the file has none.
    """

    tokenizer: Tokenizer
    config: dict[str, Any]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    chat_template: str | None


def read_gguf_tokenizer(metadata: Metadata, vocab_size: int) -> GgufTokenizer:
    """Build the tokenizer of a GGUF file.

    Raises:
        CheckpointError: the vocabulary or the merges are missing or invalid.
        UnsupportedModelError: the kind of tokenizer is not supported.
    """
    tokens, types = _vocabulary(metadata, vocab_size)
    model = metadata.text(f"{PREFIX}.model")
    if model == "gpt2":
        rule = _rule(metadata)
        tokenizer, add_bos = _byte_level(metadata, tokens, rule), rule.add_bos
    elif model == "llama":
        tokenizer, add_bos = _sentencepiece(metadata, tokens, types), True
    else:
        raise UnsupportedModelError(
            f"{metadata.path} has a tokenizer of the kind {model!r}.", "Supported: 'gpt2' (byte-level) and 'llama'."
        )
    added: dict[bool, list[AddedToken]] = {True: [], False: []}  # by being special
    for index, kind in enumerate(types):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            added[kind != USER_DEFINED].append(AddedToken(tokens[index], normalized=False))
    tokenizer.add_special_tokens(added[True])
    tokenizer.add_tokens(added[False])
    named = {name: _token_id(metadata, key, tokens) for name, key in NAMED_TOKENS.items()}
    _add_ends_of_text(tokenizer, metadata, named, add_bos)
    ends = [_token_id(metadata, key, tokens) for key in END_KEYS]
    ends += [index for index, kind in enumerate(types) if kind == CONTROL and tokens[index] in ENDS]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return GgufTokenizer(
        tokenizer,
        config | {name: tokens[index] for name, index in named.items() if index is not None},
        named["bos_token"],
        tuple(dict.fromkeys(index for index in ends if index is not None)),
        metadata.text(CHAT_TEMPLATE) if CHAT_TEMPLATE in metadata else None,
    )


def _vocabulary(metadata: Metadata, vocab_size: int) -> tuple[list[str], list[int]]:
    """The texts and types of all tokens."""
    tokens = metadata.texts(f"{PREFIX}.tokens")
    types = metadata.integers(f"{PREFIX}.token_type")
    if not len(tokens) == len(types) == vocab_size:
        raise CheckpointError(
            f"{metadata.path} has {len(tokens):,} tokens, {len(types):,} token types and {vocab_size:,} embeddings.",
            DOWNLOAD,
        )
    if len(set(tokens)) < len(tokens) or not all(0 < len(token) <= MAX_TOKEN for token in tokens):
        raise CheckpointError(
            f"{metadata.path} has an empty token, one of more than {MAX_TOKEN:,} characters, or two of the same text.",
            DOWNLOAD,
        )
    return tokens, types


def _rule(metadata: Metadata) -> Rule:
    name = metadata.text(f"{PREFIX}.pre", "default")
    if name not in RULES:
        raise UnsupportedModelError(
            f"{metadata.path} splits text by the rule {name!r} ({PREFIX}.pre), which is not known to give the right "
            "tokens here.",
            f"Supported: {', '.join(RULES)}. A file without a rule is old: download a current one.",
        )
    return RULES[name]


def _byte_level(metadata: Metadata, tokens: list[str], rule: Rule) -> Tokenizer:
    merges = []
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for merge in metadata.texts(f"{PREFIX}.merges"):
        first, _, second = merge.partition(" ")
        if not {first, second, first + second} <= vocabulary.keys():
            raise CheckpointError(f"{metadata.path} merges {merge!r}, which are not two tokens of a third.", DOWNLOAD)
        merges.append((first, second))
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=rule.whole_words))
    tokenizer.pre_tokenizer = rule.split()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Metadata, tokens: list[str], types: list[int]) -> Tokenizer:
    """A sentencepiece model of the kind BPE: the token with the highest score is merged first."""
    unknown = metadata.integer(f"{PREFIX}.unknown_token_id", 0)
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    if not byte_tokens <= set(tokens) or unknown >= len(tokens):
        raise CheckpointError(f"{metadata.path} lacks tokens for single bytes or for unknown text.", DOWNLOAD)
    merges = _merges(metadata, tokens, types)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True))
    with_prefix = metadata.boolean(f"{PREFIX}.add_space_prefix", True)
    replaced = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend(SPACE)] if with_prefix else []), replaced])
    without_prefix = [decoders.Strip(" ", 1, 0)] if with_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *without_prefix]
    )
    return tokenizer


def _merges(metadata: Metadata, tokens: list[str], types: list[int]) -> list[tuple[str, str]]:
    """The pairs that sentencepiece merges, best first. Splits of one token follow the order of the vocabulary."""
    scores = metadata.numbers(f"{PREFIX}.scores")
    if len(scores) != len(tokens):
        raise CheckpointError(f"{metadata.path} has {len(tokens):,} tokens and {len(scores):,} scores.", DOWNLOAD)
    normal = {token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    merges: list[tuple[str, str]] = []
    for token in sorted(normal, key=lambda token: -scores[normal[token]]):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
        merges += sorted(pairs, key=lambda pair: (normal[pair[0]], normal[pair[1]]))
    return merges


def _add_ends_of_text(tokenizer: Tokenizer, metadata: Metadata, named: dict[str, int | None], add_bos: bool) -> None:
    """Let the tokenizer add the tokens at the start and end of a text that the file asks for."""

    def added(name: str, default: bool) -> list[dict[str, Any]]:
        if not metadata.boolean(f"{PREFIX}.add_{name}", default):
            return []
        index = named[name]
        if index is None:
            raise CheckpointError(f"{metadata.path} adds a {name} to every text, but names none.", DOWNLOAD)
        return [{"id": name, "ids": [index], "tokens": [tokenizer.id_to_token(index)]}]

    first, last = added("bos_token", add_bos), added("eos_token", False)
    if first or last:
        pieces = [*(token["id"] for token in first), "$A", *(token["id"] for token in last)]
        tokenizer.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=[*first, *last])


def _token_id(metadata: Metadata, key: str, tokens: list[str]) -> int | None:
    if f"{PREFIX}.{key}" not in metadata:
        return None
    index = metadata.integer(f"{PREFIX}.{key}")
    if index >= len(tokens):
        raise CheckpointError(f"{metadata.path} has {key} {index} and {len(tokens):,} tokens.", DOWNLOAD)
    return index
