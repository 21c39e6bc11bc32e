"""What every client of a model server shares: its key, whether it is near, and what it said, without the key."""

import ipaddress
import json
import os
from dataclasses import dataclass, field

from posttrain.errors import ConfigError

_MOST_WORDS = 300
"""Characters of a server's words in an error."""


@dataclass(frozen=True, slots=True)
class ServerWords:
    """Makes one short line of what a server says, whichever shape it gives its errors."""

    key: str | None = field(default=None, repr=False)
    """Never in a line: some servers repeat it."""

    def message(self, body: bytes | bytearray) -> str:
        """What a body says."""
        try:
            found = json.loads(body)
        except ValueError:
            found = body.decode("utf-8", errors="replace")
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and key in found:
                found = found[key]
        return self.clean(found if isinstance(found, str) else json.dumps(found)) or "without a word"

    def clean(self, text: str) -> str:
        text = " ".join(text.split())
        text = text.replace(self.key, "***") if self.key else text
        return text if len(text) <= _MOST_WORDS else text[:_MOST_WORDS] + " ..."


def key_of(api_key_env: str | None, whose: str) -> str | None:
    """The key in an environment variable; None where none is named. Raises ConfigError where it holds none."""
    if not api_key_env:
        return None
    key = os.environ.get(api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{whose}: the environment variable {api_key_env}, named as api_key_env, holds no key; set it"
        )
    return key


def is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
