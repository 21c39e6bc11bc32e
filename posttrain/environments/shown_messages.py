"""Turns that an environment shows, checked where it makes them: what checkpoints' templates would lose in silence."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

_IMAGE_ROLES = ("user", "tool")


def check_opening(messages: Any, images: Any) -> None:
    """Raises ValueError where these cannot be what the policy is shown first."""
    roles = _checked(messages, images, "an Opening", ("system", "user", "assistant", "tool"))
    if roles[-1] not in _IMAGE_ROLES:
        raise ValueError(f"an Opening's last message has the role {roles[-1]!r}; it must be a user's, for the policy")
    if "system" in roles[1:]:
        raise ValueError("an Opening has a system message after its first message; move it to the beginning")


def check_observation(messages: Any, images: Any) -> None:
    """Raises ValueError where these cannot be what the policy reads next."""
    _checked(messages, images, "an Observation", _IMAGE_ROLES)


def _checked(messages: Any, images: Any, what: str, roles: Sequence[str]) -> list[str]:
    """Their roles."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"{what} needs at least one message, in a tuple; got {messages!r:.80}")
    num_parts = sum(_num_images(message, f"{what}'s message {place}", roles) for place, message in enumerate(messages))
    if not isinstance(images, list | tuple):
        raise ValueError(f"{what}'s images must be a tuple, got {images!r:.80}")
    for image in images:
        if not isinstance(image, Image.Image):
            raise ValueError(f"{what}'s images must be PIL images, got an object of {type(image).__name__}")
    if num_parts != len(images):
        raise ValueError(f"{what} has {num_parts} image parts but {len(images)} images; each part shows one image")
    return [message["role"] for message in messages]


def _num_images(message: Any, what: str, roles: Sequence[str]) -> int:
    match message:
        case {"role": role} if role not in roles:
            raise ValueError(f"{what} has the role {role!r}; wanted {' or '.join(map(repr, roles))}")
        case {"role": _, "content": str()}:
            return 0
        case {"role": role, "content": list() | tuple() as parts}:
            num_images = sum(_is_image(part, what) for part in parts)
            if num_images and role not in _IMAGE_ROLES:
                raise ValueError(
                    f"{what} shows an image in a turn of the {role}; only user and tool turns can show one"
                )
            return num_images
    raise ValueError(
        f"{what} must be a mapping with 'role' and 'content', a text or a list of parts; got {message!r:.80}"
    )


def _is_image(part: Any, what: str) -> bool:
    match part:
        case {"type": "text", "text": str()}:
            return False
        case {"type": "image"}:
            return True
    raise ValueError(
        f"{what} has the part {part!r:.80}; parts are {{'type': 'text', 'text': ...}} and {{'type': 'image'}}"
    )
