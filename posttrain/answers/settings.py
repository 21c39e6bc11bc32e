"""How a data set of a teacher's answers is made: what is asked, how often, and what is kept."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posttrain.errors import ConfigError
from posttrain.rollout.engine import Sampling

Thinking = Literal["template", "on", "off", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSettings:
    """All that decides which answers a data set holds, beside the teachers, the prompts and the rewards."""

    max_new_tokens: int
    """Longest answer, thoughts included; one that is cut off is not kept."""
    num_prompts: int | None = None
    """So many, mixed by the sources' ratios; None asks every row of every source once."""
    answers_per_prompt: int = 1
    thinking: Thinking = "template"
    """enable_thinking of the teacher's template; "template" leaves it out, "mixed" asks some prompts each way."""
    thinking_frac: float = 0.5
    """With "mixed": the chance that a prompt is asked to think."""
    temperature: float = 0.7
    """0 takes the most likely token."""
    top_p: float = 0.95
    top_k: int = 0
    """0 keeps every token."""
    min_reward: float | None = None
    """Keeps answers that earn at least this; None keeps every sound one."""
    keep_per_prompt: int | None = None
    """Keeps so many answers to a prompt, the best first; None keeps all."""
    batch_size: int = 64
    """Prompts asked at once. A finished batch survives a killed run; large ones keep a server busy."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("max_new_tokens", "answers_per_prompt", "batch_size")}
        optional = {"num_prompts": self.num_prompts, "keep_per_prompt": self.keep_per_prompt}
        counts |= {name: value for name, value in optional.items() if value is not None}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.thinking_frac <= 1:
            raise ConfigError(f"thinking_frac is a share from 0 to 1, got {self.thinking_frac}")
        if self.temperature == 0 and self.answers_per_prompt > 1:
            raise ConfigError(
                f"at temperature 0 all {self.answers_per_prompt} answers to a prompt are the same; set "
                "answers_per_prompt to 1 or raise the temperature"
            )

    def thinks(self, place: int) -> bool | None:
        """enable_thinking for the prompt at `place` of the order; None leaves it to the template."""
        if self.thinking == "mixed":
            # Hashed, not taken in turn: a fixed turn would meet the mixture's own and ask one source one way only.
            digest = hashlib.blake2b(f"{self.seed}/{place}".encode(), digest_size=8).digest()
            return int.from_bytes(digest, "big") < self.thinking_frac * 2**64
        return {"template": None, "on": True, "off": False}[self.thinking]

    def sampling(self, batch: int, thinking: bool | None) -> Sampling:
        """How the prompts of a batch that are asked in this way are answered, in every run with this seed."""
        way = {None: 0, False: 1, True: 2}[thinking]
        seed = int(np.random.SeedSequence((self.seed, batch, way)).generate_state(1, np.uint64)[0] >> 1)
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=seed,
        )
