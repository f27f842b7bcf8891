"""`GET /v1/models`: what the server hosts."""

from __future__ import annotations

from fastapi import APIRouter

from craft_server.api.auth import WithCaller
from craft_server.api.outputs import policy_for
from craft_server.api.services import Services, WithServices
from craft_shared.wire import ModelCard, ModelList, ProviderProfile

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="The hosted models")
async def list_models(services: WithServices, caller: WithCaller) -> ModelList:
    """The models, their limits, and what this key may receive. Free."""
    engine, policy = services.engine, policy_for(services, caller)
    card = ModelCard(
        name=engine.name,
        revision=services.revision,
        image_size=engine.image_size,
        limits=services.settings.limits,
        outputs=[policy.output.level],
        output=policy.output,
        prompts_per_image_set=policy.prompts_per_image_set,
        profile=_profile_of(services),
    )
    return ModelList(models=[card])


def _profile_of(services: Services) -> ProviderProfile | None:
    profile = services.provider.profile
    if profile is None:
        return None
    return ProviderProfile(name=profile.name, version=profile.version, digest=profile.digest)
