"""A request as a vLLM server reads it, and its answer as a sample: one sample a request, token ids both ways."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.errors import EngineError
from posttrain.model import ModelFacts
from posttrain.rollout.engine import Request, Sample, Sampling
from posttrain.rollout.server_client import TryFailed
from posttrain.rollout.vllm_prompts import check_count, check_said, full_logprobs, sampling_settings

_LEAST_TEMPERATURE = 0.02
"""vLLM's JSON holds no log-probability below -9999, and a ban at T lies 100 / T below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sample that is wanted, ready to be sent to any server."""

    body: bytes
    request: Request
    temperature: float
    facts: ModelFacts


def job_for(
    request: Request, token_ids: Sequence[int], urls: Sequence[str], facts: ModelFacts, sampling: Sampling, **drawn: int
) -> Job:
    """token_ids: the prompt with one token an image. urls: data URLs of its pictures. drawn: max_new_tokens, seed.

    Raises EngineError for a temperature whose log-probabilities a server could not write down.
    """
    if 0 < sampling.temperature < _LEAST_TEMPERATURE:
        raise EngineError(
            f"a vLLM server cannot give log-probabilities at temperature {sampling.temperature:g}: use 0, or "
            f"{_LEAST_TEMPERATURE:g} and more"
        )
    settings = sampling_settings(facts, sampling, max_new_tokens=drawn["max_new_tokens"], seed=drawn["seed"])
    if banned := settings["logprob_token_ids"]:
        # A server repeats as many as it is asked for with the sampled one among them: one more, or the last is lost.
        settings |= {"logprob_token_ids": [*banned, banned[-1]], "logprobs": len(banned) + 1}
    body: dict[str, Any] = {"token_ids": list(token_ids), "sampling_params": settings}
    if urls:
        body["content_parts"] = [{"type": "image_url", "url": url} for url in urls]
    return Job(
        body=json.dumps(body, allow_nan=False).encode(),
        request=request,
        temperature=sampling.temperature or 1.0,
        facts=facts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a server sampled, and with which weights, by their label."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    stop: Any
    labels: frozenset[str]

    def sample(self, version: int) -> Sample:
        return Sample(token_ids=self.token_ids, logprobs=self.logprobs, stop=self.stop, weights_version=version)


def said_in(reply: Any, job: Job) -> Said:
    """Raises TryFailed for an answer that is not whole or not of vLLM's shape, EngineError for one that is wrong."""
    try:
        (choice,) = reply["choices"]
        token_ids = np.array(choice["token_ids"], dtype=np.int64)
        content = choice["logprobs"]["content"]
        sampled_T = np.array([entry["logprob"] for entry in content], dtype=np.float64)
        banned = job.facts.banned_token_ids
        found = [{top["token_id"]: top["logprob"] for top in entry["top_logprobs"]} for entry in content]
        banned_TB = np.array([[tops[token] for token in banned] for tops in found]).reshape(len(found), len(banned))
        labels = frozenset(span["version"] for span in choice["weight_versions"] or ())
        reason, count = choice["finish_reason"], int(reply["usage"]["prompt_tokens"])
        same = [entry["token_id"] for entry in content] == token_ids.tolist()
    except (KeyError, TypeError, ValueError) as error:
        raise TryFailed(f"sent an answer that is not of vLLM's shape ({type(error).__name__}: {error})") from None
    if reason == "abort":
        raise TryFailed("was interrupted while it sampled")
    if not same or reason not in ("stop", "length") or not len(token_ids):
        raise TryFailed(f"sent {len(token_ids)} tokens, {len(content)} log-probabilities, and ended with '{reason}'")
    check_count(count, job.request)
    check_said(token_ids, job.facts)
    if not labels:
        raise EngineError("the server does not say which weights have sampled: it wants vLLM 0.32 or newer")
    return Said(
        token_ids=token_ids,
        logprobs=full_logprobs(sampled_T, banned_TB, job.temperature),
        stop="end" if reason == "stop" else "length",
        labels=labels,
    )
