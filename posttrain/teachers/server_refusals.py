"""What a server's refusals mean: vLLM's own words, and what to do about each."""

from posttrain.errors import TeacherError
from posttrain.teachers.server_client import ServerRefusal

_MEANINGS = {
    "not JSON compliant": (
        "gives log-probabilities that are not finite: its weights are damaged, or values overflow; start it with "
        "--dtype bfloat16 or float32"
    ),
    "is not a multimodal model": (
        "serves a text model and cannot see images: route their tasks to a vision-language teacher"
    ),
    "out of vocabulary": (
        "does not have all the student's tokens ({message}): choose a teacher with the student's tokenizer"
    ),
    "does not exist": "no longer serves the model that it served ({message}): start it with that one again",
    "may be provided in one prompt": (
        "takes fewer images than a prompt has ({message}): start it with a higher --limit-mm-per-prompt"
    ),
}
_TOO_LONG = ("maximum context length", "maximum model length")
_TOO_MANY = "greater than max allowed"
_CLOSED = "Scale-out endpoints are disabled"


def explained(refusal: ServerRefusal, who: str, *, top_k: int = 0) -> TeacherError:
    """The refusal with its meaning where it is a known one, else in the server's own words."""
    if refusal.status in (401, 403):
        return refusal
    if _TOO_MANY in refusal.message and "logprobs" in refusal.message:
        return TeacherError(
            f"{who} gives fewer log-probabilities for a token than the top_k of {top_k}: start it with "
            f"--max-logprobs {top_k}, or lower top_k"
        )
    for words, meaning in _MEANINGS.items():
        if words in refusal.message:
            return TeacherError(f"{who} {meaning.format(message=refusal.message)}")
    return TeacherError(f"{who} refused a request with {refusal.status}: {refusal.message}")


def is_too_long(refusal: ServerRefusal) -> bool:
    """True = the prompt is longer than what the server reads."""
    return any(words in refusal.message for words in _TOO_LONG)


def lacks_endpoint(refusal: ServerRefusal) -> bool:
    """True = the server does not have the address that was asked, whatever the request."""
    return _CLOSED in refusal.message or (refusal.status in (404, 405) and "model" not in refusal.message)
