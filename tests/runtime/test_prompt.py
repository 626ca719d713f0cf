import pytest
from tokenizers import processors

from liger_export.runtime.prompt import encode_prompt
from tests.tiny import END_OF_TEXT, byte_tokenizer


@pytest.mark.parametrize(("template", "prefix"), [("{} $A", [0]), ("{} $A {}", [0]), ("$A {}", []), ("$A", [])])
def test_a_prompt_has_one_prefix_and_no_suffix(template: str, prefix: list[int]) -> None:
    tokenizer = byte_tokenizer()
    single = template.replace("{}", END_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(END_OF_TEXT, 0)])
    assert encode_prompt(tokenizer, "ab", add_special_tokens=True) == [*prefix, 65, 66]
    assert encode_prompt(tokenizer, END_OF_TEXT + "ab", add_special_tokens=True) == [0, 65, 66]
    assert encode_prompt(tokenizer, "ab", add_special_tokens=False) == [65, 66]
    assert encode_prompt(tokenizer, "", add_special_tokens=True) == prefix
