"""The wire models of API v1: what travels as JSON, or as the document of a safetensors body.

A field marked as a tensor travels as nested lists in JSON and as the safetensors tensor of the same
name otherwise; images travel as base64 strings in JSON and as the tensors `files` and
`file_sizes` otherwise (`craft_shared.codec.pack_files`).

One module a resource, and what each makes public is here:

    messages       how strictly messages are read; names, labels, times
    models         /v1/models, and output levels
    account        /v1/budget, /v1/usage, and what a call cost
    predictions    /v1/image-sets, /v1/predictions, zero-shot classification, and the space of codes
    adapters       /v1/adapters
    admin          /v1/admin

Bounds here hold on every server; `GET /v1/models` states a server's own limits.
"""

from __future__ import annotations

from craft_shared.amounts import Window
from craft_shared.wire.account import Budget, BudgetList, Charge, Cost, Usage
from craft_shared.wire.adapters import (
    AdapterCard,
    AdapterChange,
    AdapterList,
    AdapterPage,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    AdapterPublishAnswer,
    AdapterSettings,
    AdapterUsage,
    AdapterUse,
    Provenance,
)
from craft_shared.wire.admin import (
    BudgetLimit,
    BudgetLimits,
    BudgetTopUp,
    BudgetTopUps,
    KeyCard,
    KeyCreate,
    KeyList,
    KeyPolicies,
    KeyPolicy,
    KeyRotate,
    KeySecret,
    PriceList,
    PriceLists,
    Scope,
    TeamBudgetLimit,
    TeamBudgetLimits,
    UsageLine,
)
from craft_shared.wire.messages import Answer, LabelScore, Message
from craft_shared.wire.models import (
    EVERYTHING,
    Level,
    Limits,
    ModelCard,
    ModelList,
    Output,
    ProviderProfile,
)
from craft_shared.wire.predictions import (
    AbsoluteScale,
    Context,
    ImageSet,
    ImageSetCreate,
    ImageUpload,
    ImageUploadAnswer,
    PredictionAnswer,
    PredictionRequest,
    Scale,
    ZeroShotParameters,
    ZeroShotRequest,
)

__all__ = [
    "EVERYTHING",
    "AbsoluteScale",
    "AdapterCard",
    "AdapterChange",
    "AdapterList",
    "AdapterPage",
    "AdapterPredictionAnswer",
    "AdapterPredictionRequest",
    "AdapterPublishAnswer",
    "AdapterSettings",
    "AdapterUsage",
    "AdapterUse",
    "Answer",
    "Budget",
    "BudgetLimit",
    "BudgetLimits",
    "BudgetList",
    "BudgetTopUp",
    "BudgetTopUps",
    "Charge",
    "Context",
    "Cost",
    "ImageSet",
    "ImageSetCreate",
    "ImageUpload",
    "ImageUploadAnswer",
    "KeyCard",
    "KeyCreate",
    "KeyList",
    "KeyPolicies",
    "KeyPolicy",
    "KeyRotate",
    "KeySecret",
    "LabelScore",
    "Level",
    "Limits",
    "Message",
    "ModelCard",
    "ModelList",
    "Output",
    "PredictionAnswer",
    "PredictionRequest",
    "PriceList",
    "PriceLists",
    "Provenance",
    "ProviderProfile",
    "Scale",
    "Scope",
    "TeamBudgetLimit",
    "TeamBudgetLimits",
    "Usage",
    "UsageLine",
    "Window",
    "ZeroShotParameters",
    "ZeroShotRequest",
]
