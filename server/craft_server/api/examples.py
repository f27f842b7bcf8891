"""Examples of what calls are sent and answer, for the API's description.

What the pocket model says of a handwritten zero, and what that cost. It knows operation ids and
wire models, so that a wrong example does not load; it does not know OpenAPI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from craft_server.ledger import exports
from craft_server.settings import DEFAULT_LIMITS
from craft_shared.adapter import AdapterConfig
from craft_shared.problems import INVALID_IMAGE, INVALID_REQUEST, FieldError, Problem, ProblemType
from craft_shared.receipt import KEYS_MEDIA_TYPE
from craft_shared.receipt import MEDIA_TYPE as RECEIPT_MEDIA_TYPE
from craft_shared.run_reports import RunCard, RunCurve, RunList, RunPoint, RunPoints, RunReport
from craft_shared.units import Units
from craft_shared.wire import (
    AdapterCard,
    AdapterChange,
    AdapterList,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    AdapterPublishAnswer,
    AdapterSettings,
    AdapterUsage,
    AdapterUse,
    Budget,
    BudgetLimit,
    BudgetLimits,
    BudgetList,
    BudgetTopUp,
    BudgetTopUps,
    Charge,
    Context,
    Cost,
    ImageSet,
    ImageSetCreate,
    ImageUpload,
    ImageUploadAnswer,
    KeyCard,
    KeyCreate,
    KeyList,
    KeyPolicies,
    KeyPolicy,
    KeyRotate,
    KeySecret,
    ModelCard,
    ModelList,
    Output,
    PredictionAnswer,
    PredictionRequest,
    PriceList,
    PriceLists,
    Provenance,
    Usage,
    UsageLine,
)

JSON_TYPE = "application/json"

_MODEL, _REVISION = "pocket", "cffb53dbadc7e4fb"
_OWNER, _TEAM, _PREFIX = "digits-app", "research", "k3v9x2ma"
_RUN = "digits-16-shots"
_CLASSES = ["eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero"]
_TEMPLATE = "a photo of the number {}."
# A handwritten zero of 8 x 8 pixels (scikit-learn's digits), as PNG.
_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAARUlEQVR42gXBQRGAIAAAsB3nHxpoA2lCBCMZgQwm0AbQ"
    "wCMBRnBDaWcEbdZZLPYtj5SvIPWhE6SHRPBlMX9Y31JvcLSKH6APEesy1LcOAAAAAElFTkSuQmCC"
)
_AT, _LATER = "2026-11-26T12:08:43.138Z", "2026-11-26T12:08:44.012Z"


def _cost(spent: int, **charged: int) -> Cost:
    budget = Budget(unit="queries", limit=8000, spent=spent, reserved=0, remaining=8000 - spent)
    return Cost(charged=Units(**charged), budgets=[budget])


_IMAGE_SET = ImageSet(id="is_NdWOtiHJAymCqPRMv8BSWA", model=_MODEL, revision=_REVISION, count=0)
_ADAPTER = AdapterCard(
    owner=_OWNER,
    name="digits",
    version=1,
    aliases=["latest", "stable"],
    digest="946d571deec378b1e262a568d789e37508e6a92cf4d3730307317f3d3ad08fea",
    model=_MODEL,
    revision=_REVISION,
    access_mode="strict",
    classes=_CLASSES,
    prompts=32,
    published_at="2026-11-26T12:08:44.935Z",
    provenance=Provenance(
        recipe="craftbox",
        data="digits",
        shots=4,
        seed=1,
        accuracy_before=12.5,
        accuracy_after=85.0,
        units=Units(queries=32, predictions=1280, texts=320, requests=1),
    ),
)
_SHARED = AdapterSettings(
    owner=_OWNER,
    name="digits",
    public=False,
    keys=[],
    teams=[_TEAM],
    pays="caller",
    abstain_below=0.5,
    aliases={"stable": 1},
)
_SPENT = Units(queries=32, predictions=1280, images=0, texts=320, requests=1)
_CHARGE = Charge(
    id=2,
    at=_AT,
    call="predictions",
    run=_RUN,
    model=_MODEL,
    revision=_REVISION,
    state="settled",
    units=_SPENT,
)
_BUDGETS = BudgetList(budgets=_cost(33).budgets)
_LIMITS = BudgetLimits(budgets=[BudgetLimit(unit="queries", window="lifetime", limit=8000)])
_TOP_UPS = BudgetTopUps(budgets=[BudgetTopUp(unit="queries", window="lifetime", amount=1000)])
_KEY = KeyCard(
    id=3,
    prefix=_PREFIX,
    prefixes=[_PREFIX],
    owner=_OWNER,
    name="phones",
    team=_TEAM,
    scopes=["predict"],
    requests_per_minute=600,
    predictions_per_minute=None,
    concurrency=4,
    created_at="2026-11-26T12:08:30.000Z",
    expires_at=None,
    revoked_at=None,
)
_SECRET = KeySecret(key=f"craft_{_PREFIX}_{'shown-once' + '-' * 33}", prefix=_PREFIX, card=_KEY)
_POLICY = KeyPolicy(
    model=_MODEL, output=Output(level="probs", decimals=2, noise=0.5), prompts_per_image_set=512
)
_PRICES = PriceList(micros={"queries": 500, "images": 20})
_LINE = UsageLine(
    **_CHARGE.model_dump(exclude={"id", "units"}),
    id=7,
    **_SPENT.model_dump(),
    line=2,
    closed_at=_LATER,
    key_id=3,
    key=_PREFIX,
    owner=_OWNER,
    team=_TEAM,
)

_REPORT = RunReport(
    title="digits, 16 shots", model=_MODEL, dataset="digits", recipe="craftbox", budget=8000
)
_POINT = RunPoint(
    sequence=1,
    generation=1,
    queries=72,
    loss=2.2834,
    best_loss=2.1417,
    accuracy=70.0,
    units=Units(queries=72, predictions=2880, texts=720, requests=2),
)
_REPORTED = RunCard(
    run=_RUN,
    **_REPORT.model_dump(),
    started_at=_AT,
    updated_at=_LATER,
    points=1,
    latest=_POINT,
)

REQUESTS: Mapping[str, BaseModel] = {
    "report_run": _REPORT,
    "report_points": RunPoints(points=[_POINT]),
    "change_adapter": AdapterChange(teams=[_TEAM], abstain_below=0.5, aliases={"stable": 1}),
    "create_image_set": ImageSetCreate(model=_MODEL),
    "upload_images": ImageUpload(first_row=0, images=[_PICTURE]),
    "create_prediction": PredictionRequest(
        model=_MODEL,
        classes=["zero", "one", "two"],
        templates=[_TEMPLATE],
        images=[_PICTURE],
    ),
    "create_adapter_prediction": AdapterPredictionRequest(images=[_PICTURE], top_k=3),
    "create_key": KeyCreate(
        owner=_OWNER,
        name="phones",
        team=_TEAM,
        scopes=["predict"],
        requests_per_minute=600,
        concurrency=4,
        budgets=_LIMITS.budgets,
    ),
    "rotate_key": KeyRotate(overlap_seconds=3600),
    "set_key_policy": _POLICY,
    "set_key_budgets": _LIMITS,
    "set_team_budgets": _LIMITS,
    "top_up_key": _TOP_UPS,
    "top_up_team": _TOP_UPS,
    "set_prices": _PRICES,
}

ANSWERS: Mapping[str, BaseModel | Mapping[str, Any]] = {
    "get_liveness": {JSON_TYPE: {"status": "ok"}},
    "get_readiness": {JSON_TYPE: {"status": "ok"}},
    "get_metrics": {
        "text/plain": "# HELP craft_engine_alive 1 while the model runs.\n"
        "# TYPE craft_engine_alive gauge\n"
        "craft_engine_alive 1.0\n"
    },
    "list_models": ModelList(
        models=[
            ModelCard(
                name=_MODEL,
                revision=_REVISION,
                image_size=224,
                limits=DEFAULT_LIMITS,
                outputs=["log_probs"],
            )
        ]
    ),
    "create_image_set": _IMAGE_SET,
    "get_image_set": _IMAGE_SET.model_copy(update={"count": 1}),
    "upload_images": ImageUploadAnswer(
        image_set=_IMAGE_SET.model_copy(update={"count": 1}), cost=_cost(0, images=1, requests=1)
    ),
    "create_prediction": PredictionAnswer(
        model=_MODEL,
        revision=_REVISION,
        cost=_cost(33, queries=1, predictions=1, images=1, texts=3, requests=1),
        log_probs=[[[-1.3409664630889893, -0.5440398454666138, -1.8451063632965088]]],
    ),
    "get_usage": Usage(
        total=Units(queries=33, predictions=1281, images=41, texts=323, requests=3),
        charges=[_CHARGE],
        next_after=2,
    ),
    "get_budget": _BUDGETS,
    "get_receipt": {
        # Shortened: a whole one has about 2,000 characters.
        RECEIPT_MEDIA_TYPE: "eyJhbGciOiJFZERTQSIsInR5cCI6ImNyYWZ0Ym94LXJlY2VpcHQifQ"
        ".eyJ2ZXJzaW9uIjoxLCJvd25lciI6ImRpZ2l0cy1hcHAifQ"
        ".mnsvQSwqTkvBHzyrcVFXsQy85lm8qYA9hiwGHgYGv8Z0bzS-rIUMXulTNtB6gGVQC4wcmqPljxhOW9UZFCyMCg"
    },
    "get_receipt_keys": {
        KEYS_MEDIA_TYPE: {
            "keys": [
                {
                    "crv": "Ed25519",
                    "x": "tJTihVaAEqnrizKjOKA5Euv7Ec4H_8VZYSqkqsgdOyY",
                    "kty": "OKP",
                    "kid": "kB0ELXGndcAP21NLLwaWtAA5vEg1292khzvHG8aVPx0",
                    "use": "sig",
                    "alg": "EdDSA",
                }
            ]
        }
    },
    "publish_adapter": AdapterPublishAnswer(
        adapter=_ADAPTER, cost=_cost(33, texts=320, requests=1)
    ),
    "report_run": _REPORTED,
    "report_points": _REPORTED,
    "list_runs": RunList(runs=[_REPORTED]),
    "get_run": RunCurve(card=_REPORTED, points=[_POINT]),
    "list_adapters": AdapterList(adapters=[_ADAPTER]),
    "list_adapter_versions": AdapterList(adapters=[_ADAPTER]),
    "get_adapter_settings": _SHARED,
    "change_adapter": _SHARED,
    "get_adapter_usage": AdapterUsage(
        owner=_OWNER, name="digits", versions=[AdapterUse(version=1, calls=40, units=_SPENT)]
    ),
    "get_adapter": _ADAPTER,
    "create_adapter_prediction": AdapterPredictionAnswer(
        adapter="digits",
        version=1,
        classes=_CLASSES,
        cost=_cost(65, queries=32, predictions=32, images=1, requests=1),
        output=Output(level="top_k", k=3),
        log_probs=[[-0.06714363396167755, -3.985529661178589, -4.527941703796387]],
        top_classes=[[9, 5, 1]],
    ),
    "create_key": _SECRET,
    "list_keys": KeyList(keys=[_KEY]),
    "rotate_key": _SECRET,
    "revoke_key": _KEY.model_copy(update={"revoked_at": _LATER}),
    "get_key_policy": KeyPolicies(policies=[_POLICY]),
    "set_key_policy": KeyPolicies(policies=[_POLICY]),
    "set_key_budgets": _BUDGETS,
    "set_team_budgets": _BUDGETS,
    "top_up_key": _BUDGETS,
    "top_up_team": _BUDGETS,
    "list_prices": PriceLists(models={_MODEL: _PRICES.micros}),
    "set_prices": _PRICES,
    "export_usage": {
        "text/csv": exports.header("csv") + exports.text(_LINE, "csv"),
        "application/jsonl": exports.text(_LINE, "jsonl"),
    },
}

# Documents that travel inside safetensors files alone.
DOCUMENTS: Mapping[str, BaseModel] = {
    "AdapterConfig": AdapterConfig(
        model=_MODEL,
        revision=_REVISION,
        classes=_CLASSES,
        templates=[_TEMPLATE],
        context=Context(init="a photo of the number", dim=512, seed=1, scale=1.0),
        codes=31,
        head="ridge",
    )
}

# By name, since the same thing is named alike in every call.
PARAMETERS: Mapping[str, Any] = {
    "Idempotency-Key": "0b7f9c1e-6d0a-4c55-9c0e-3f1f6f0a7a52",
    "Craft-Run": _RUN,
    "image_set_id": _IMAGE_SET.id,
    "idempotency_key": "0b7f9c1e-6d0a-4c55-9c0e-3f1f6f0a7a52",
    "prefix": _PREFIX,
    "model": _MODEL,
}

_DETAILS = {
    "malformed-body": "the body is not valid JSON: expected value at line 1 column 1",
    "request-timeout": "the body was not complete in time",
    "head-too-large": "the request's head has more than 65536 bytes",
    "unauthenticated": "the key is unknown, expired or revoked",
    "forbidden": "the call needs a key with the scope 'publish'",
    "budget-exhausted": "this call needs 40 queries and 12 are left",
    "prompt-limit-reached": "510 of 512 different prompts have been asked about these pictures, "
    "and this call asks 32 more",
    "not-found": "there is no key with this prefix",
    "model-not-found": "this server hosts no model 'RN50'",
    "image-set-not-found": "there is no image set with this id under the key's owner",
    "adapter-not-found": "there is no adapter of this name and version that the key may use",
    "not-recorded": "the POST /v1/predictions that comes nearest differs in templates[0]: "
    "'a {}' was sent, and 'the {}' was recorded",
    "method-not-allowed": "PUT /v1/models: Method Not Allowed",
    "revision-mismatch": "the adapter was tuned on 'pocket' revision cffb53dbadc7e4fb; "
    "the server hosts 'pocket' revision 5d1c0b7e9a3f2468",
    "call-in-progress": "this call was sent before and has not been answered yet",
    "run-in-progress": "2 calls that the receipt would cover have not been answered yet",
    "body-too-large": "the body has more than 67108864 bytes",
    "unsupported-media-type": "the content type is 'text/plain'; this call takes application/json "
    "or application/x-safetensors",
    "invalid-request": "top_k: 12; there are 10 classes",
    "invalid-image": "1 pictures are not base64",
    "answer-gone": "the answer to this call cannot be had any more: it has been computed anew 8 "
    "times already",
    "idempotency-key-reused": "a call with another address or body was made under this "
    "Idempotency-Key",
    "rate-limited": "this call needs 1 requests and 0 of 600 a minute are left",
    "internal-error": "something went wrong inside the server",
    "overloaded": "the model cannot take this call now; nothing was charged",
}
_ERRORS = {
    INVALID_REQUEST: FieldError(
        field="top_k",
        message="12; there are 10 classes",
        remedy="Ask for at most 10, or leave top_k out for all of them.",
    ),
    INVALID_IMAGE: FieldError(
        field="images[3]",
        message="this is not base64",
        remedy="Send the picture file's bytes as a base64 string.",
    ),
}


def problem(kind: ProblemType) -> Problem:
    """A problem of a kind, as a call may answer with it."""
    errors = [_ERRORS[kind]] if kind in _ERRORS else []
    made = Problem.of(kind, _DETAILS.get(kind.slug, kind.title), errors)
    return made.model_copy(update={"request_id": "6aed9acb32c74bc1956c48b2c9453bd8"})
