"""A prompt's token ids."""

from tokenizers import Tokenizer

__all__ = ["encode_prompt"]


def encode_prompt(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Encode a prompt.

    Args:
        tokenizer: The package's tokenizer.
        text: The prompt.
        add_special_tokens: Add the tokens that the tokenizer puts before a text, unless the prompt starts with them.
            Tokens that it puts after a text are never added, because the text goes on.
    """
    body = list(tokenizer.encode(text, add_special_tokens=False).ids)
    if not add_special_tokens:
        return body
    whole = tokenizer.encode(text or "a", add_special_tokens=True)  # an empty text does not separate prefix and suffix
    count = next((at for at, is_added in enumerate(whole.special_tokens_mask) if not is_added), 0)
    prefix = list(whole.ids[:count])
    return body if body[:count] == prefix else prefix + body
