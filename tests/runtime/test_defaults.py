"""The defaults of ``generation_config.json``: the tokens that transformers chooses from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from liger_export.errors import PackageError
from liger_export.runtime import Sampling, load
from liger_export.runtime.defaults import GenerationDefaults, read_defaults
from liger_export.runtime.sampling import Sampler
from tests.tiny import edit_json, load_model, reseal

PROMPT = [3, 7, 7, 9]


def defaults_of(directory: Path, **values: Any) -> GenerationDefaults:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return read_defaults(directory)


@pytest.mark.parametrize(
    "values",
    [
        {"do_sample": True},
        {"do_sample": True, "top_k": 0, "temperature": 0.6},
        {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.05},
        {"do_sample": True, "top_k": None, "min_p": 0.1, "top_p": 0.95},
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.8},
        {"temperature": 0.6},
        {},
    ],
    ids=str,
)
def test_tokens_are_chosen_from_the_distribution_of_transformers(checkpoint_copy: Path, values: dict[str, Any]) -> None:
    sampling = defaults_of(checkpoint_copy, eos_token_id=0, pad_token_id=0, **values).sampling
    model = load_model(checkpoint_copy)
    out = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=1, output_scores=True, output_logits=True, return_dict_in_generate=True
    )
    logits, scores = (each[0][0].float().numpy() for each in (out.logits, out.scores))
    seen = np.isin(np.arange(len(logits)), PROMPT)
    penalized = np.where(seen, np.where(logits > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty), 1)
    sampler = Sampler(sampling, seen)
    if sampling.temperature == 0:
        assert sampler.choose(logits) == int(out.sequences[0, -1])
    else:
        expected = torch.softmax(torch.from_numpy(scores).double(), 0).numpy()
        probabilities = sampler.probabilities((logits * penalized).astype(np.float32))
        assert ((probabilities > 0) == (expected > 0)).all()
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_without_do_sample_decoding_is_greedy_and_filters_wait_for_a_temperature(tmp_path: Path) -> None:
    assert read_defaults(tmp_path) == GenerationDefaults() == GenerationDefaults(Sampling(), {})
    assert defaults_of(tmp_path, temperature=0.6, top_p=0.9).sampling == Sampling(top_p=0.9)


@pytest.mark.parametrize(
    ("values", "ignored"),
    [
        ({"num_beams": 4, "no_repeat_ngram_size": 3}, {"num_beams": 4, "no_repeat_ngram_size": 3}),
        ({"num_beams": 1, "typical_p": 1.0, "min_length": 0, "bad_words_ids": None, "max_length": 4096}, {}),
        ({"typical_p": 0.9, "epsilon_cutoff": 0.1}, {}),  # greedy
        ({"typical_p": 0.9, "epsilon_cutoff": 0.1, "do_sample": True}, {"typical_p": 0.9, "epsilon_cutoff": 0.1}),
        ({"suppress_tokens": [5], "use_cache": True, "transformers_version": "5"}, {"suppress_tokens": [5]}),
    ],
)
def test_settings_that_are_not_applied_are_named(
    tmp_path: Path, values: dict[str, Any], ignored: dict[str, Any]
) -> None:
    assert defaults_of(tmp_path, **values).ignored == ignored


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "not a JSON object"),
        ('{"top_p": 1.5}', r"top_p is 1\.5.*at most 1"),
        ('{"do_sample": 1}', "do_sample is 1"),
        ('{"do_sample": true, "temperature": -1}', "temperature is -1"),
        ('{"do_sample": true, "temperature": NaN}', "temperature is nan"),
        ('{"top_k": 2.5}', "top_k is 2.5"),
        ('{"repetition_penalty": "1"}', "repetition_penalty is '1'"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_the_file(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(PackageError, match=rf"generation_config\.json.*{words}"):
        read_defaults(tmp_path)


def test_a_session_uses_its_packages_defaults_unless_told_otherwise(package_copy: Path) -> None:
    greedy = "".join(load(package_copy).generate("def", max_new_tokens=12))
    values = json.dumps({"do_sample": True, "temperature": 1.0, "top_k": 1, "repetition_penalty": 5.0})
    (package_copy / "generation_config.json").write_text(values)
    files = json.loads((package_copy / "manifest.json").read_text())["files"]
    edit_json(package_copy / "manifest.json", files=files | {"generation_config.json": {}})
    reseal(package_copy)
    session = load(package_copy)
    expected = Sampling(temperature=1.0, top_k=1, repetition_penalty=5.0)
    assert session.defaults.sampling == session.fork().defaults.sampling == expected
    fork = session.fork()
    assert "".join(session.generate("def", max_new_tokens=12)) == "".join(
        fork.generate("def", max_new_tokens=12, sampling=expected)
    )
    session.reset()
    assert "".join(session.generate("def", max_new_tokens=12, sampling=Sampling())) == greedy
    session.reset()
    assert "".join(session.generate("def", max_new_tokens=12)) != greedy


def test_a_package_without_the_file_is_greedy(package_copy: Path) -> None:
    (package_copy / "generation_config.json").unlink()
    files = json.loads((package_copy / "manifest.json").read_text())["files"]
    del files["generation_config.json"]
    edit_json(package_copy / "manifest.json", files=files)
    assert load(package_copy).defaults == GenerationDefaults()
