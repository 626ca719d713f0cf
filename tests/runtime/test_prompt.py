import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from liger_export.errors import InputError
from liger_export.runtime.prompt import PromptEncoder
from tests.runtime.test_text import unigram
from tests.tiny import END_OF_TEXT, byte_tokenizer


def plain_ids(text: str) -> list[int]:
    """Token ids of a text in which special tokens are text, from a tokenizer that has none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index + 1 for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def ids_of(text: str, tokenizer: Tokenizer | None = None, *, adds: bool = False, parses: bool = False) -> list[int]:
    encoder = PromptEncoder(tokenizer or byte_tokenizer())
    return encoder.encode(text, add_special_tokens=adds, parse_special_tokens=parses)


@pytest.mark.parametrize("parses", [True, False])
@pytest.mark.parametrize(("template", "prefix"), [("{} $A", [0]), ("{} $A {}", [0]), ("$A {}", []), ("$A", [])])
def test_a_prompt_has_one_prefix_and_no_suffix(template: str, prefix: list[int], parses: bool) -> None:
    tokenizer = byte_tokenizer()
    single = template.replace("{}", END_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(END_OF_TEXT, 0)])
    assert ids_of("ab", tokenizer, adds=True, parses=parses) == [*prefix, 65, 66]
    assert ids_of("ab", tokenizer, adds=False, parses=parses) == [65, 66]
    assert ids_of("", tokenizer, adds=True, parses=parses) == prefix
    assert ids_of(END_OF_TEXT + "ab", tokenizer, adds=True, parses=True) == [0, 65, 66]


def test_special_tokens_in_a_prompt_are_text_unless_parsed() -> None:
    text = f"a {END_OF_TEXT} b"
    assert ids_of(text) == plain_ids(text)
    assert ids_of(text, adds=True) == [0, *plain_ids(text)]
    assert ids_of(text, parses=True) == [*plain_ids("a "), 0, *plain_ids(" b")]
    assert ids_of(END_OF_TEXT, adds=True) == [0, *plain_ids(END_OF_TEXT)]


def test_added_tokens_that_are_not_special_are_parsed_in_any_case() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<indent>"])
    text = f"<indent>{END_OF_TEXT}"
    assert ids_of(text, tokenizer) == [257, *plain_ids(END_OF_TEXT)]
    assert ids_of(text, tokenizer, parses=True) == [257, 0]


def test_the_tokenizer_itself_keeps_parsing() -> None:
    tokenizer = byte_tokenizer()
    ids_of(END_OF_TEXT, tokenizer)
    assert tokenizer.encode(END_OF_TEXT, add_special_tokens=False).ids == [0]


def test_an_unknown_character_is_no_special_token() -> None:
    assert ids_of("\u00e9,\u00fc", unigram()) == unigram().encode("\u00e9,\u00fc").ids


def test_a_special_token_that_cannot_be_text_is_refused() -> None:
    """This tokenizer lists ``</s>`` among its pieces, so it finds it in any text."""
    with pytest.raises(InputError, match=r"cannot encode '</s>' as text.*parse_special_tokens=True"):
        ids_of("b</s>", unigram())
    assert ids_of("b</s>", unigram(), parses=True)[-1] == 2


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        ids_of("a\udcff")


def test_a_tokenizer_with_an_absurd_token_id_is_refused_at_once() -> None:
    values = json.loads(byte_tokenizer().to_str())
    values["model"]["vocab"]["l"] = 2**31
    with pytest.raises(InputError, match=r"id 2147483648.*tokenizer\.json"):
        ids_of(END_OF_TEXT, Tokenizer.from_str(json.dumps(values)))
