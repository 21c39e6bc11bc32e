"""Where a judge is asked and how: the options that every judge reward takes as its `server`."""

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints
from urllib.parse import urlsplit

from .registry import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeServer:
    """An OpenAI-compatible server, such as `vllm serve`, and what may be asked of it. Nothing is contacted here.

    Rewards with equal settings share one judge: one limit of concurrency, one budget, one cache, one set of counts.
    Raises ValueError for settings that no server can have.
    """

    url: str = "http://127.0.0.1:8000"
    """The server's root, with or without /v1."""
    model: str = ""
    """The model's name there; empty asks the server, which must then serve exactly one."""
    api_key_env: str = ""
    """The environment variable that holds the API key; empty sends none."""
    timeout_s: float = 60.0
    """Seconds for one whole try, from connecting to the last byte."""
    retries: int = 8
    """Tries after the first where the connection fails, the time runs out, or the server says 408, 425, 429 or 5xx."""
    backoff_s: float = 1.0
    """Longest pause before the first of them; it doubles up to 30 s, and each is drawn from its upper half."""
    outage_s: float = 120.0
    """Seconds without any answer after which the judge counts as down: then only one request every 30 s tries."""
    concurrency: int = 32
    """Requests under way at once."""
    max_requests: int = 0
    """Budget of this process: requests, retries included; 0 sets no limit."""
    max_tokens: int = 0
    """Budget of this process: tokens read and written; 0 sets no limit."""
    cache: str = ""
    """SQLite file that keeps verdicts; processes may share it. Empty keeps none."""
    temperature: float = 0.0
    """Of the first try for a verdict; each further one adds 0.3."""
    max_reply_tokens: int = 512
    """Longest reply; a judge that thinks needs more."""
    verdict_tries: int = 3
    """Replies that are asked for until one holds a verdict."""
    structured: bool = False
    """Asks the server to constrain the reply to the verdict's JSON schema (`response_format`)."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """More fields of each request, such as `{chat_template_kwargs: {enable_thinking: false}}`; null drops a field."""

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
            raise ValueError(
                f"the judge's url must be like http://host:8000, without a name or password, got {_masked(self.url)!r}"
            )
        for name in ("timeout_s", "outage_s", "concurrency", "max_reply_tokens", "verdict_tries"):
            if not getattr(self, name) > 0:
                raise ValueError(f"the judge's {name} must be above 0, got {getattr(self, name)}")
        for name in ("retries", "backoff_s", "max_requests", "max_tokens", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"the judge's {name} must be 0 or more, got {getattr(self, name)}")
        if fixed := {"model", "messages"} & set(self.extra_body):
            raise ValueError(f"the judge's extra_body cannot set {min(fixed)!r}")
        if self.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("the judge's api_key_env must be the name of an environment variable, not the key itself")

    @property
    def root(self) -> str:
        """The address before /v1."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def is_this_machine(self) -> bool:
        """True for a loopback address, which no proxy could reach."""
        host = urlsplit(self.url).hostname or ""
        if host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified

    @property
    def identity(self) -> str:
        """Equal for equal settings."""
        return json.dumps(asdict(self), sort_keys=True, default=str)

    def api_key(self) -> str:
        """The key, empty where none is named. Raises ValueError where the variable holds none."""
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ValueError(
                f"the environment variable {self.api_key_env}, the judge's api_key_env, holds no key; set it"
            )
        return key


ServerOptions = JudgeServer | Mapping[str, Any]
"""The settings, or those that differ from the defaults as a recipe's mapping."""


def make_server(options: ServerOptions) -> JudgeServer:
    """The settings from a recipe's mapping. Raises ValueError for an unknown one or one of the wrong type."""
    from pydantic import TypeAdapter, ValidationError

    if isinstance(options, JudgeServer):
        return options
    types, made = get_type_hints(JudgeServer), {}
    for key, value in options.items():
        if key not in types:
            raise ValueError(f"the judge's server has no option {key!r}{nearest(key, types)}")
        try:
            made[key] = TypeAdapter(types[key]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise ValueError(f"the judge's {key} got {value!r:.80}, wanted {wanted}") from None
    return JudgeServer(**made)


def plain_options(options: ServerOptions) -> dict[str, Any]:
    """The settings that differ from the defaults, as plain data for a run's manifest. Raises as `make_server`."""
    server, usual = make_server(options), JudgeServer()
    return {f.name: value for f in fields(server) if (value := getattr(server, f.name)) != getattr(usual, f.name)}


def _masked(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)
