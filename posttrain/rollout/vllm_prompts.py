"""What vLLM is asked and what its answers mean, the same in this process and over HTTP: prompts, bans, seeds, sums."""

from itertools import groupby
from typing import Any

import numpy as np

from posttrain.errors import EngineError
from posttrain.model import ModelFacts
from posttrain.rollout.engine import Request, Sampling

BAN_NATS = 100.0
"""Taken from the logits of banned tokens, the most that vLLM allows; known, so that their mass can be reckoned back."""


def one_token_an_image(token_ids: np.ndarray, image_token_id: int | None) -> list[int]:
    """The prompt with every run of image tokens cut to one: vLLM expands it itself, and would expand each of a run."""
    shortened: list[int] = []
    for token_id, run in groupby(token_ids.tolist()):
        shortened.extend([token_id] if token_id == image_token_id else run)
    return shortened


def checked_prompt(request: Request, facts: ModelFacts, max_model_len: int) -> list[int]:
    """The prompt's token ids for vLLM. Raises EngineError where it leaves no room to answer, or lacks pictures."""
    if len(request.token_ids) >= max_model_len:
        raise EngineError(
            f"a prompt of {len(request.token_ids)} tokens leaves no room to answer within max_model_len "
            f"{max_model_len}: raise it, or drop such prompts"
        )
    if len(request.pictures) != len(request.images):
        raise EngineError(
            f"a prompt has {len(request.images)} images but {len(request.pictures)} pictures: vLLM cuts patches "
            "itself and needs each image as the trainer resized it"
        )
    token_ids = one_token_an_image(request.token_ids, facts.image_token_id)
    places = token_ids.count(facts.image_token_id) if facts.image_token_id is not None else 0
    if places != len(request.pictures):
        raise EngineError(
            f"a prompt has {len(request.pictures)} images and {places} places for them; tokens between two images "
            "keep their places apart"
        )
    return token_ids


def check_count(theirs: int, request: Request) -> None:
    """Raises EngineError where vLLM has read another number of tokens than the trainer will."""
    if theirs != len(request.token_ids):
        raise EngineError(
            f"vLLM read a prompt of {theirs} tokens where the trainer has {len(request.token_ids)}: give the engine "
            "the trainer's limits of image sizes, so that both resize images alike"
        )


def vllm_seed(*numbers: int) -> int:
    """A seed for the first of a request's samples; the others have it plus 1, 2, ..., and no request another's."""
    entropy = [number % (1 << 64) for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0]) << 20


def sampling_settings(facts: ModelFacts, sampling: Sampling, *, max_new_tokens: int, seed: int) -> dict[str, Any]:
    """vLLM's sampling parameters for one sample, named as vLLM names them.

    For each token the log-probabilities of the sampled one and of all the banned ones are asked for.
    """
    banned = list(facts.banned_token_ids)
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": max_new_tokens,
        "seed": seed,
        "stop_token_ids": list(facts.eos_token_ids),
        "logit_bias": dict.fromkeys(banned, -BAN_NATS) if banned else None,
        "logprobs": None if banned else 0,  # a number beside token ids would have vLLM find the likeliest in vain
        "logprob_token_ids": banned or None,
        "detokenize": False,
    }


def full_logprobs(sampled_T: np.ndarray, banned_TB: np.ndarray, temperature: float) -> np.ndarray:
    """float32 [T] log-probabilities over the full vocabulary, from those after the ban.

    The ban took 100 from each banned logit, so its log-probability before is that after plus 100 / temperature, up to
    the change of the total that is sought: log p = log p' - log(1 + sum_b exp(log p'_b + 100 / temperature)).
    """
    before_TB = banned_TB.astype(np.float64) + BAN_NATS / temperature
    total_T = np.logaddexp.reduce(before_TB, axis=1, initial=0.0)
    return (sampled_T - total_T).astype(np.float32)


def check_said(token_ids: np.ndarray, facts: ModelFacts) -> None:
    """Raises EngineError where a token that is banned was sampled all the same."""
    if np.isin(token_ids, facts.banned_token_ids).any():
        raise EngineError(f"a vision token was sampled against a bias of -{BAN_NATS:g}: the weights are broken")
