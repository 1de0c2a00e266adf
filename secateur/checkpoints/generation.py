# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's settings for answers (generation_config.json), as the defaults of a bundle."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import GenerationConfig

from secateur.bundle.sampling import Sampling
from secateur.errors import BadModel, InputError, shortened

FOLLOWED = frozenset(field.name for field in dataclasses.fields(Sampling)) | {"do_sample", "eos_token_id"}
WITHOUT_EFFECT = frozenset(
    "assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind "
    "bos_token_id cache_config cache_implementation compile_config continuous_batching_config "
    "decoder_start_token_id disable_compile early_stopping forced_bos_token_id is_assistant length_penalty "
    "low_memory max_cache_len max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule "
    "num_return_sequences output_attentions output_hidden_states output_logits output_scores pad_token_id "
    "prefill_chunk_size prompt_lookup_num_tokens renormalize_logits return_dict_in_generate speculation_type "
    "target_lookbehind transformers_version use_cache use_mtp".split()
)
"""Settings of speed, of several answers, and of what `generate` returns; tokens do not depend on them here."""
ONLY_DRAWS = frozenset(["eta_cutoff", "top_h"])
"""Settings that matter for random draws only."""
NEUTRAL: dict[str, Any] = GenerationConfig._get_default_generation_params() | {
    "diversity_penalty": 0.0,
    "guidance_scale": 1,
    "num_beams": 1,
    "penalty_alpha": 0,
    "token_healing": False,
}
FILE = "generation_config.json"


def settings(config: GenerationConfig, vocabulary: int) -> tuple[Sampling, tuple[str, ...]]:
    """Return the settings of a checkpoint for answers, and warnings of those that are not supported.

    Unset ones have transformers' defaults, but an answer has at most 64 tokens unless max_new_tokens is set.

    Raises:
        BadModel: a value is out of bounds, or a banned token is not in the vocabulary.
    """
    given = {name: value for name, value in config.to_dict().items() if name[0] != "_" and value is not None}
    chosen = {name: value for name, value in given.items() if name in FOLLOWED - {"do_sample", "eos_token_id", "seed"}}
    chosen.setdefault("top_k", NEUTRAL["top_k"])
    if given.get("do_sample"):
        chosen.setdefault("temperature", NEUTRAL["temperature"])
        if chosen["temperature"] == 0:
            raise BadModel(f"temperature is 0 with do_sample in {FILE}; set do_sample to false")
    else:
        chosen["temperature"] = 0.0
    if "min_new_tokens" in chosen:
        chosen.pop("min_length", None)
    if isinstance(chosen.get("stop_strings"), str):
        chosen["stop_strings"] = (chosen["stop_strings"],)
    try:
        made = Sampling(**chosen)
    except InputError as problem:
        raise BadModel(f"{problem}; correct {FILE}") from None
    banned = {*made.suppress_tokens, *made.begin_suppress_tokens, *(t for word in made.bad_words_ids for t in word)}
    if beyond := [token for token in sorted(banned) if token >= vocabulary]:
        raise BadModel(f"{FILE} bans the token {beyond[0]}, the model has 0 to {vocabulary - 1}; correct it")
    return made, _not_followed(given)


def _not_followed(given: dict[str, Any]) -> tuple[str, ...]:
    """Return a warning that names the settings that `generate` follows and a bundle does not."""
    ignored = FOLLOWED | WITHOUT_EFFECT | (frozenset() if given.get("do_sample") else ONLY_DRAWS)
    if "max_new_tokens" in given:
        ignored |= {"max_length"}
    found = {n: v for n, v in given.items() if n not in ignored and (n == "max_length" or v != NEUTRAL.get(n))}
    if not found:
        return ()
    listed = shortened(", ".join(f"{name} {value!r}" for name, value in sorted(found.items())))
    return (f"{FILE} has settings that a bundle does not follow, so answers may differ from transformers': {listed}",)
