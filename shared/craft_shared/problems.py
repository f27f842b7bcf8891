"""Problem types: the errors that the server answers with and the client raises (RFC 9457).

`first_error` and `field_errors` say in wire notation (`classes[3]`, `context.dim`) what is wrong
with a document that its model refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from craft_shared import names

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:craftbox:problem:"


@dataclass(frozen=True)
class ProblemType:
    """A kind of problem with a stable name.

    Attributes:
        slug: the last part of the `type` URI.
        status: the HTTP status it is answered with.
        title: a short summary that is the same for every occurrence (RFC 9457, 3.1.4).
        remedy: what a caller can do about it, in general.
    """

    slug: str
    status: int
    title: str
    remedy: str

    @property
    def uri(self) -> str:
        """The problem's `type` member."""
        return TYPE_PREFIX + self.slug


MALFORMED_BODY = ProblemType(
    "malformed-body",
    400,
    "The request body cannot be read",
    "Send JSON or safetensors as the API description says.",
)
UNAUTHENTICATED = ProblemType(
    "unauthenticated",
    401,
    "The API key is missing or not valid",
    "Send a valid key: 'Authorization: Bearer craft_...'.",
)
FORBIDDEN = ProblemType(
    "forbidden",
    403,
    "The API key may not do this",
    "Ask the provider for a key with the scope that 'detail' names.",
)
BUDGET_EXHAUSTED = ProblemType(
    "budget-exhausted",
    402,
    "The key's budget does not cover this call",
    "Ask for less, or ask the provider for a top-up; a retry cannot succeed.",
)
PROMPT_LIMIT_REACHED = ProblemType(
    "prompt-limit-reached",
    403,
    "The key may not ask so many different prompts about these pictures",
    "Ask prompts that were asked before, or ask the provider for more; a retry cannot succeed.",
)
USER_LIMIT_REACHED = ProblemType(
    "user-limit-reached",
    403,
    "The key may not name more end users",
    "Name a user that was named before, or ask the provider for more; a retry cannot succeed.",
)
NOT_FOUND = ProblemType(
    "not-found", 404, "There is no such resource", "Check the address of the call."
)
MODEL_NOT_FOUND = ProblemType(
    "model-not-found", 404, "The server hosts no such model", "GET /v1/models lists the models."
)
IMAGE_SET_NOT_FOUND = ProblemType(
    "image-set-not-found",
    404,
    "There is no such image set",
    "Create it with POST /v1/image-sets under the same key's owner.",
)
ADAPTER_NOT_FOUND = ProblemType(
    "adapter-not-found", 404, "There is no such adapter", "GET /v1/adapters lists the adapters."
)
NOT_RECORDED = ProblemType(
    "not-recorded",
    404,
    "The recording has no answer to this call",
    "Make the calls that were recorded, or record a session that makes this one.",
)
METHOD_NOT_ALLOWED = ProblemType(
    "method-not-allowed", 405, "The resource has no such method", "See /docs for its methods."
)
REVISION_MISMATCH = ProblemType(
    "revision-mismatch",
    409,
    "The model is another one, or has another revision, than when this was made",
    "Tune again, and upload pictures again, on the model that the server hosts now.",
)
CALL_IN_PROGRESS = ProblemType(
    "call-in-progress",
    409,
    "The same call is still running",
    "Send it again, with the same Idempotency-Key, after the Retry-After time.",
)
RUN_IN_PROGRESS = ProblemType(
    "run-in-progress",
    409,
    "Calls that the receipt would cover are still running",
    "Ask again when they are answered, or name a run or a period ('until') that is over.",
)
ANSWER_GONE = ProblemType(
    "answer-gone",
    410,
    "The call was answered before, and its answer cannot be computed anew",
    "Make the call under an Idempotency-Key of its own; it is then a new call, and charged.",
)
BODY_TOO_LARGE = ProblemType(
    "body-too-large",
    413,
    "The request body is larger than the server accepts",
    "Send less in one call; GET /v1/models states the limits.",
)
REQUEST_TIMEOUT = ProblemType(
    "request-timeout",
    408,
    "The request did not arrive in time",
    "Send it again, over a faster connection or in smaller parts.",
)
HEAD_TOO_LARGE = ProblemType(
    "head-too-large",
    431,
    "The request's head is larger than the server accepts",
    "Send fewer and shorter header fields, and a shorter address.",
)
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    "unsupported-media-type",
    415,
    "The content type is not supported",
    "Send application/json or application/x-safetensors.",
)
INVALID_REQUEST = ProblemType(
    "invalid-request", 422, "The request is not valid", "Correct the fields that 'errors' names."
)
INVALID_IMAGE = ProblemType(
    "invalid-image",
    422,
    "A picture cannot be used",
    "Remove or replace the pictures that 'errors' names.",
)
IDEMPOTENCY_KEY_REUSED = ProblemType(
    "idempotency-key-reused",
    422,
    "Another call was made under this Idempotency-Key",
    "Give each call a key of its own; send a call again only as it was.",
)
RATE_LIMITED = ProblemType(
    "rate-limited",
    429,
    "The key's rate limit is reached",
    "Send the call again after the Retry-After time.",
)
INTERNAL_ERROR = ProblemType(
    "internal-error",
    500,
    "The server failed",
    "Nothing was charged. Report the request id to the provider.",
)
OVERLOADED = ProblemType(
    "overloaded", 503, "The server cannot do this now", "Try again after the Retry-After time."
)

# All of the above.
PROBLEM_TYPES: dict[str, ProblemType] = {
    kind.uri: kind for kind in list(globals().values()) if isinstance(kind, ProblemType)
}


class FieldError(BaseModel):
    """One thing wrong with one field.

    Attributes:
        field: where it stands, such as `classes[3]`.
        message: what is wrong.
        remedy: what to do about it.
    """

    model_config = ConfigDict(frozen=True)

    field: str
    message: str
    remedy: str = ""


class Problem(BaseModel):
    """A problem document (RFC 9457, section 3)."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str = ""
    request_id: str = Field(default="", description="Names the call in the provider's log.")
    errors: Annotated[list[FieldError], FailFast()] = Field(default_factory=list)

    @classmethod
    def of(cls, kind: ProblemType, detail: str, errors: list[FieldError] | None = None) -> Problem:
        """A problem of a known type with the words for this occurrence."""
        return cls(
            type=kind.uri,
            title=kind.title,
            status=kind.status,
            detail=detail,
            remedy=kind.remedy,
            errors=errors or [],
        )


_REMEDIES = {names.FAULT: names.REMEDY}


def first_error(error: ValidationError, whole: str = "") -> str:
    """The first thing that is wrong: `field: message`.

    Args:
        error: has one at least.
        whole: how the document is called where no field of it is at fault; without it the message
            stands alone.
    """
    first = field_errors(error)[0]
    field = first.field or whole
    return f"{field}: {first.message}" if field else first.message


def field_errors(error: ValidationError) -> list[FieldError]:
    """Everything that is wrong; of the whole document where the field is empty."""
    return [
        FieldError(
            field="".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"]
            ).removeprefix("."),
            message=one["msg"].removeprefix("Value error, "),
            remedy=_REMEDIES.get(one["type"], ""),
        )
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
