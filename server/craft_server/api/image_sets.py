"""`/v1/image-sets`: upload images once, score them often."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from fastapi.responses import Response
from sqlalchemy import Connection

from craft_server import image_sets
from craft_server.api.answers import json_response
from craft_server.api.auth import caller_with
from craft_server.api.body import Body, body_of
from craft_server.api.idempotency import Call, call_of
from craft_server.api.inputs import (
    check_files,
    check_model,
    check_same_model,
    decode_images,
    digests_of,
)
from craft_server.api.metering import booking, free_of_charge
from craft_server.api.openapi import refusals, safetensors_body
from craft_server.api.services import WithServices
from craft_server.image_sets import WrongFirstRow
from craft_server.ledger.charges import Work
from craft_server.ledger.keys import Caller
from craft_server.problems import invalid_field
from craft_shared import problems
from craft_shared.units import Units
from craft_shared.wire import ImageSet, ImageSetCreate, ImageUpload, ImageUploadAnswer

router = APIRouter(prefix="/v1/image-sets", tags=["image sets"])

ImageSetId = Annotated[str, Path(examples=["is_NdWOtiHJAymCqPRMv8BSWA"])]
WithPredictKey = Annotated[Caller, Depends(caller_with("predict"))]


@router.post(
    "",
    status_code=201,
    summary="Make an image set",
    response_model=ImageSet,
    openapi_extra=safetensors_body(ImageSetCreate, "none"),
    responses=refusals(problems.MODEL_NOT_FOUND),
)
async def create_image_set(
    call: Annotated[Call, Depends(call_of("predict", repeatable=False))],
    body: Annotated[Body[ImageSetCreate], Depends(body_of(ImageSetCreate))],
) -> Response:
    """Makes an empty image set of a model. Free."""
    services = call.services
    check_model(services, body.message.model)

    def create(connection: Connection) -> Response:
        made = image_sets.create_image_set(
            connection,
            call.caller.owner,
            model=services.engine.name,
            revision=services.revision,
            images_in=services.engine.facts.images_in,
        )
        return json_response(made, status=201)

    return await free_of_charge(call, create)


@router.get(
    "/{image_set_id}", summary="An image set", responses=refusals(problems.IMAGE_SET_NOT_FOUND)
)
async def get_image_set(
    services: WithServices, caller: WithPredictKey, image_set_id: ImageSetId
) -> ImageSet:
    """An image set of the key's owner, and how many images it holds. Free."""
    return await services.database.read(image_sets.get_image_set, caller.owner, image_set_id)


@router.delete(
    "/{image_set_id}",
    status_code=204,
    summary="Delete an image set",
    responses=refusals(problems.IMAGE_SET_NOT_FOUND),
)
async def delete_image_set(
    services: WithServices, caller: WithPredictKey, image_set_id: ImageSetId
) -> None:
    """Deletes an image set, and the features of images that no other one holds. Free."""
    await services.database.write(image_sets.delete_image_set, caller.owner, image_set_id)
    services.features.discard(lambda key: key[0] == image_set_id)


@router.post(
    "/{image_set_id}/images",
    response_model=ImageUploadAnswer,
    summary="Upload images",
    responses=refusals(
        problems.BUDGET_EXHAUSTED,
        problems.IMAGE_SET_NOT_FOUND,
        problems.REVISION_MISMATCH,
        problems.INVALID_IMAGE,
    ),
)
async def upload_images(
    image_set_id: ImageSetId,
    call: Annotated[Call, Depends(call_of("predict", repeatable=False, least=Units(requests=1)))],
    body: Annotated[Body[ImageUpload], Depends(body_of(ImageUpload))],
) -> Response:
    """Appends images to an image set; all of them, or none if one cannot be used.

    Charged: one of `images` for each image that the owner has not had encoded before, and one of
    `requests`. Of simultaneous uploads of one image one is charged.
    """
    services, caller = call.services, call.caller
    image_set = await services.database.read(image_sets.get_image_set, caller.owner, image_set_id)
    check_same_model(services, image_set)
    files, first_row = body.files or [], body.message.first_row
    if first_row != image_set.count:
        raise WrongFirstRow(image_set.count)
    check_files(files)
    allowed = services.settings.limits.images_per_set
    if image_set.count + len(files) > allowed:
        raise invalid_field(
            "images",
            f"the image set would hold {image_set.count + len(files)} images; {allowed} are "
            "allowed",
            "Go on in another image set.",
        )
    digests = await asyncio.to_thread(digests_of, files)
    known = await services.database.read(
        image_sets.known_features, caller.owner, image_set, digests
    )
    # The first position in the body of each image that is not known yet.
    new: dict[str, int] = {}
    for position, digest in enumerate(digests):
        if digest not in known:
            new.setdefault(digest, position)
    units = Units(images=len(new), requests=1)
    work = Work("images", image_set.model, image_set.revision, units, call.run)
    async with booking(call, work) as booked:
        images = await decode_images(
            call, [files[position] for position in new.values()], list(new.values())
        )
        encoded = await services.engine.encode_images(images, tenant=caller.tenant)

        def add(connection: Connection) -> Response:
            grown, added = image_sets.add_rows(
                connection,
                caller.owner,
                image_set_id,
                first_row=first_row,
                digests=digests,
                features={**known, **dict(zip(new, encoded, strict=True))},
            )
            # Another upload may have added some of them meanwhile.
            spent = Units(images=sum(digest in new for digest in added), requests=1)
            cost = booked.charge_less(connection, spent)
            return json_response(ImageUploadAnswer(image_set=grown, cost=cost))

        return await booked.settle_with(add)
