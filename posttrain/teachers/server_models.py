"""What a server serves: the model that is asked, and how much it reads."""

from dataclasses import dataclass
from typing import Any

from posttrain.errors import TeacherError
from posttrain.teachers.server_client import ServerClient


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model of a server, as its /v1/models says it."""

    name: str
    """By which requests ask for it."""
    root: str
    """Folder or hub name that its weights were loaded from; the name where the server does not say it."""
    max_model_len: int | None
    """Tokens, what it answers included; None where the server does not say it."""
    is_vllm: bool


def find_served(client: ServerClient, wanted: str | None) -> ServedModel:
    """The model of the name `wanted`; None takes the only one, adapters and further names for it left aside.

    Raises TeacherError, naming what is served, where that is none or not one.
    """

    def read(reply: Any) -> list[tuple[ServedModel, bool]]:
        try:
            return [(_served(entry), bool(entry.get("parent"))) for entry in reply["data"]]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise TeacherError(f"{client.who} sent no list of models: is it an OpenAI-compatible server?") from None

    listed = client.get("/v1/models", read)
    if wanted is not None:
        found = [served for served, _ in listed if served.name == wanted]
    else:
        whole = [served for served, is_adapter in listed if not is_adapter]
        found = whole if len({served.root for served in whole}) == 1 else []
    if found:
        return found[0]
    names = ", ".join(f"'{served.name}'" for served, _ in listed) or "nothing"
    if wanted is None:
        raise TeacherError(f"{client.who} serves {names}: say which one is the teacher, as served_model")
    raise TeacherError(f"{client.who} does not serve '{wanted}', it serves {names}: correct served_model")


def _served(entry: dict[str, Any]) -> ServedModel:
    length = entry.get("max_model_len")
    return ServedModel(
        name=str(entry["id"]),
        root=str(entry.get("root") or entry["id"]),
        max_model_len=int(length) if length is not None else None,
        is_vllm=entry.get("owned_by") == "vllm",
    )
