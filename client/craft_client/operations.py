"""What a client does: each operation as the calls it makes and what their answers come to.

An operation is a generator of `craft_client.calls.Call`, so that it neither sends nor waits: the
clients of `craft_client.api` do, with or without an event loop. It knows the paths and bodies of
API v1; it does not know connections, retries or optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from craft_client.answers import (
    AdapterPrediction,
    Prediction,
    check_content_type,
    checked_flags,
    checked_tensors,
    read_json,
    read_tensors,
    shown_output,
)
from craft_client.calls import IDEMPOTENCY_HEADER, JSON_TYPE, Call, Operation, message, path
from craft_client.connection import most_body_bytes
from craft_client.exceptions import InvalidImage, ProtocolError, problem_error
from craft_client.pictures import Picture, files
from craft_client.uploads import check_count, check_picture, picture_chunks, renumbered
from craft_shared import codec, problems
from craft_shared.adapter import Adapter
from craft_shared.display import Listed
from craft_shared.problems import Problem
from craft_shared.run_reports import RunPoint, RunPoints, RunReport
from craft_shared.wire import (
    AdapterCard,
    AdapterChange,
    AdapterList,
    AdapterPredictionAnswer,
    AdapterPredictionRequest,
    AdapterPublishAnswer,
    AdapterSettings,
    AdapterUsage,
    Budget,
    BudgetList,
    Charge,
    ImageSet,
    ImageSetCreate,
    ImageUpload,
    ImageUploadAnswer,
    ModelCard,
    ModelList,
    PredictionAnswer,
    PredictionRequest,
    Usage,
)

# What an answer may come to at most: all that a server sends at once four times over, where it is
# not known how much was asked for; every adapter of an owner's; and what stands beside numbers.
MOST_TENSOR_BYTES = 2**30
MOST_LIST_BYTES = 32 * 2**20
MOST_KEYS_BYTES = 2**18
DOCUMENT_BYTES = 8 * 2**20

# --- models -------------------------------------------------------------------------------


def models() -> Operation[list[ModelCard]]:
    """The models that the server hosts."""
    cards = read_json(ModelList, (yield Call("GET", "/v1/models"))).models
    most = most_body_bytes()
    if most is not None:
        cards = [_with_bodies_of(most, card) for card in cards]
    return Listed(cards)


def _with_bodies_of(most: int, card: ModelCard) -> ModelCard:
    limits = card.limits.model_copy(update={"body_bytes": min(most, card.limits.body_bytes)})
    return card.model_copy(update={"limits": limits})


def model(name: str | None = None) -> Operation[ModelCard]:
    """The model of that name; without a name the first one.

    Raises:
        ModelNotFound: the server hosts no such model.
    """
    cards = yield from models()
    for card in cards:
        if name is None or card.name == name:
            return card
    hosted = ", ".join(f"'{card.name}'" for card in cards) or "none"
    wanted = f"There is no model '{name}'" if name else "There is no model"
    raise problem_error(
        Problem.of(problems.MODEL_NOT_FOUND, f"{wanted}; the server hosts {hosted}.")
    )


# --- image sets ---------------------------------------------------------------------------


def create_image_set(model: str, *, idempotency_key: str | None = None) -> Operation[ImageSet]:
    """Makes an empty image set for a model. Free.

    The same call again under the same idempotency key is answered with the same image set, as it
    was when it was made.
    """
    body = message(ImageSetCreate, model=model).model_dump_json().encode()
    call = Call("POST", "/v1/image-sets", json=body, idempotency_key=idempotency_key)
    return read_json(ImageSet, (yield call))


def image_set(image_set_id: str) -> Operation[ImageSet]:
    """The present state of an image set. Free."""
    return read_json(ImageSet, (yield Call("GET", path("image-sets", image_set_id))))


def delete_image_set(image_set_id: str) -> Operation[None]:
    """Deletes an image set and its features. Free."""
    yield Call("DELETE", path("image-sets", image_set_id))


def upload_images(
    image_set: ImageSet,
    images: Iterable[Picture],
    *,
    on_chunk: Callable[[ImageUploadAnswer], None] | None = None,
    idempotency_key: str | None = None,
) -> Operation[ImageSet]:
    """Appends pictures to an image set, in as many calls as the model's limits ask for.

    Pictures that the key's owner has had encoded before are not charged again.

    Args:
        image_set: its `count` must be up to date.
        images: see `craft_client.pictures`; read and encoded lazily, a chunk at a time.
        on_chunk: called after each call with its answer.
        idempotency_key: of the whole upload. The same upload again under the same key, from
            the same `count` on, adds and charges only what had not arrived; so does the rest of
            it from a later `count` on.

    Returns:
        The image set with its new count.

    Raises:
        DataError: a picture cannot be used; nothing of its chunk was sent.
        LimitExceeded: a picture is too large, or the image set becomes too large.
        InvalidImage: the server cannot use a picture; `images[i]` counts from the first one
            given. Chunks before it have been added and paid.
        InvalidRequest: `image_set` is not up to date; `first_row` is named.
    """
    limits = (yield from model(image_set.model)).limits
    before = image_set.count
    if isinstance(images, Sequence):
        for number, picture in enumerate(images):
            if isinstance(picture, bytes):
                check_picture(picture, number, limits)
        check_count(before + len(images), limits)
    for chunk in picture_chunks(files(images), limits):
        check_count(image_set.count + len(chunk), limits)
        document = message(ImageUpload, first_row=image_set.count).model_dump(exclude={"images"})
        try:
            response = yield Call(
                "POST",
                path("image-sets", image_set.id, "images"),
                tensors=codec.encode(document, codec.pack_files(chunk)),
                accept=JSON_TYPE,
                idempotency_key=idempotency_key and f"{idempotency_key}-{image_set.count}",
            )
        except InvalidImage as error:
            raise renumbered(error, image_set.count - before) from error
        answer = read_json(ImageUploadAnswer, response)
        if answer.image_set.count != image_set.count + len(chunk):
            raise ProtocolError(
                f"The image set has {answer.image_set.count} pictures after {len(chunk)} were "
                f"added to {image_set.count}."
            )
        image_set = answer.image_set
        if on_chunk:
            on_chunk(answer)
    return image_set


# --- predictions --------------------------------------------------------------------------


def predict(
    request: PredictionRequest,
    *,
    codes: NDArray[np.float32] | None = None,
    images: Sequence[Picture] | None = None,
    count: int | None = None,
    idempotency_key: str | None = None,
) -> Operation[Prediction]:
    """Scores prompts x images x classes in one call.

    Args:
        request: without `codes` and `images`, which travel as tensors.
        codes: float32 [K, dim], appended to the request's templates.
        images: when the request names no image set; see `craft_client.pictures`.
        count: of the image set's pictures, where all are asked about and it is known: an answer of
            another size is refused.
        idempotency_key: the same call again under the same key is answered as it was, and is
            not charged again; a new key when None.

    Raises:
        ProblemError: the server refused; nothing was charged.
        AnswerLost: the answer did not arrive; the ledger tells whether it was charged.
    """
    tensors: codec.Tensors = {}
    if codes is not None:
        tensors["codes"] = np.ascontiguousarray(codes, np.float32)
    if images is not None:
        tensors |= codec.pack_files(list(files(images)))
    document = request.model_dump(mode="json", exclude={"codes", "images"}, exclude_none=True)
    body = codec.encode(document, tensors)
    prompts = len(request.templates) + (0 if codes is None else len(codes))
    count = _count(images, request.rows, count)
    width = min(request.top_k or len(request.classes), len(request.classes))
    response = yield Call(
        "POST",
        "/v1/predictions",
        tensors=body,
        idempotency_key=idempotency_key,
        most_bytes=_most_bytes(None if count is None else prompts * count * width),
    )
    answer, tensors = read_tensors(PredictionAnswer, response)
    output = shown_output(answer.output, request.top_k)
    return Prediction(
        answer.model,
        answer.revision,
        output,
        checked_tensors(tensors, (prompts, count), len(request.classes), output),
        answer.cost,
        response.request.headers[IDEMPOTENCY_HEADER],
    )


def acknowledge(idempotency_key: str) -> Operation[None]:
    """Tells the server that a prediction's answer is stored safely here. Free.

    The server lets go of the answer's bytes; the same call under the same key is computed anew
    from then on, still without charge. It is tried once, since an answer that is not
    acknowledged is merely kept for longer.
    """
    yield Call("DELETE", path("answers", idempotency_key), again=False)


# --- the key's account --------------------------------------------------------------------


def usage() -> Operation[Usage]:
    """All charges of the key and their total, all pages merged. Free."""
    charges: list[Charge] = []
    after: int | None = None
    while True:
        query = {} if after is None else {"after": str(after)}
        page = read_json(Usage, (yield Call("GET", "/v1/usage", query=query)))
        charges += page.charges
        if page.next_after is None:
            return page.model_copy(update={"charges": charges})
        if after is not None and page.next_after <= after:
            raise ProtocolError("The server's list of charges does not come to an end.")
        after = page.next_after


def budgets() -> Operation[list[Budget]]:
    """The key's budgets; a unit without one is not bounded. Free."""
    return Listed(read_json(BudgetList, (yield Call("GET", "/v1/budget"))).budgets)


def receipt(
    run: str | None = None, *, since: str | None = None, until: str | None = None
) -> Operation[str]:
    """A signed receipt over a run, or over all that the key was charged. Free.

    Verify it with `craft_shared.receipt.verify` before it is relied on.

    Args:
        run: what the run is called on the server.
        since: RFC 3339; only calls from then on.
        until: RFC 3339; only calls before.

    Raises:
        RunInProgress: calls that the receipt would cover are still running.
        NotFound: there is nothing to give a receipt for.
    """
    # Slow to import, and needed by nothing else here.
    from craft_shared.receipt import MEDIA_TYPE

    bounds = {"run": run, "since": since, "until": until}
    query = {name: value for name, value in bounds.items() if value is not None}
    response = yield Call("GET", "/v1/receipts", query=query, accept=MEDIA_TYPE)
    check_content_type(response, MEDIA_TYPE)
    try:
        return response.content.decode("ascii")
    except UnicodeDecodeError as error:
        raise ProtocolError("The server sent a receipt that is no text.") from error


def receipt_keys() -> Operation[bytes]:
    """The JWK set that verifies the server's receipts. Free, under any API key or none."""
    from craft_shared.receipt import KEYS_MEDIA_TYPE

    response = yield Call(
        "GET", "/v1/receipts/keys", accept=KEYS_MEDIA_TYPE, most_bytes=MOST_KEYS_BYTES
    )
    check_content_type(response, KEYS_MEDIA_TYPE)
    return response.content


# --- reported runs ------------------------------------------------------------------------


def report_run(run: str, report: RunReport) -> Operation[None]:
    """Makes or changes what the server's console says of a run. Free; tried once."""
    body = report.model_dump_json().encode()
    yield Call("PUT", path("runs", run), json=body, again=False)


def report_points(run: str, points: Sequence[RunPoint]) -> Operation[None]:
    """Adds points to a reported run's curve, unless they are there. Free; tried once."""
    body = message(RunPoints, points=list(points)).model_dump_json().encode()
    yield Call("PUT", path("runs", run, "points"), json=body, again=False)


# --- adapters -----------------------------------------------------------------------------


def publish(
    name: str, adapter: Adapter, *, aliases: Sequence[str] = ()
) -> Operation[AdapterPublishAnswer]:
    """Publishes an adapter under a name; the same adapter again is free.

    `aliases` mean this version from then on.
    """
    response = yield Call(
        "POST",
        "/v1/adapters",
        query={"name": name, "alias": list(aliases)},
        tensors=adapter.to_bytes(),
        accept=JSON_TYPE,
    )
    return read_json(AdapterPublishAnswer, response)


def adapters() -> Operation[list[AdapterCard]]:
    """The adapters that the key may use: its owner's, shared ones, public ones. Free."""
    call = Call("GET", "/v1/adapters", most_bytes=MOST_LIST_BYTES)
    return Listed(read_json(AdapterList, (yield call), MOST_LIST_BYTES).adapters)


def adapter(name: str) -> Operation[AdapterCard]:
    """The version that `[OWNER/]NAME[@VERSION|@ALIAS]` means now. Free."""
    return read_json(AdapterCard, (yield Call("GET", path("adapters", name))))


def adapter_versions(name: str) -> Operation[list[AdapterCard]]:
    """All versions of one of the owner's adapters, the retired ones too. Free."""
    call = Call("GET", path("adapters", name, "versions"), most_bytes=MOST_LIST_BYTES)
    response = yield call
    return Listed(read_json(AdapterList, response, MOST_LIST_BYTES).adapters)


def adapter_settings(name: str) -> Operation[AdapterSettings]:
    """Who may use one of the owner's adapters, who pays, and what its aliases mean. Free."""
    return read_json(AdapterSettings, (yield Call("GET", path("adapters", name, "settings"))))


def change_adapter(name: str, change: AdapterChange) -> Operation[AdapterSettings]:
    """Changes what `change` was given, of all versions at once; what holds after it. Free."""
    body = change.model_dump_json(exclude_unset=True).encode()
    return read_json(AdapterSettings, (yield Call("PATCH", path("adapters", name), json=body)))


def adapter_usage(name: str) -> Operation[AdapterUsage]:
    """What was classified with one of the owner's adapters, by everybody. Free."""
    return read_json(AdapterUsage, (yield Call("GET", path("adapters", name, "usage"))))


def retire(name: str) -> Operation[None]:
    """Takes `NAME@VERSION`, or all versions of `NAME`, out of service. Free."""
    yield Call("DELETE", path("adapters", name))


def restore(name: str) -> Operation[None]:
    """Takes what was retired into service again. Free."""
    yield Call("PUT", path("adapters", name, "restore"))


def adapter_predict(
    name: str,
    *,
    images: Sequence[Picture] | None = None,
    image_set: str | None = None,
    rows: Sequence[int] | None = None,
    top_k: int | None = None,
    abstain_below: float | None = None,
    classes: Sequence[str] | None = None,
    count: int | None = None,
    idempotency_key: str | None = None,
) -> Operation[AdapterPrediction]:
    """Classifies pictures, or rows of an image set, with a published adapter in one call.

    Args:
        name: `[OWNER/]NAME[@VERSION|@ALIAS]`.
        images: where no image set is named; see `craft_client.pictures`.
        image_set: an image set's id.
        rows: of the image set; all when None.
        top_k: how many classes of each picture to answer, the most probable ones; all when
            None. The charge is the same.
        abstain_below: probability that a picture's best class must have; the adapter's own
            threshold when None.
        classes: of the adapter, where they are known: an answer with others is refused.
        count: as in `predict`.
        idempotency_key: as in `predict`.
    """
    request = message(
        AdapterPredictionRequest,
        image_set=image_set,
        rows=None if rows is None else list(rows),
        top_k=top_k,
        abstain_below=abstain_below,
    )
    body = codec.encode(
        request.model_dump(mode="json", exclude_none=True),
        {} if images is None else codec.pack_files(list(files(images))),
    )
    count = _count(images, rows, count)
    known = [top_k] if top_k is not None else []
    known += [len(classes)] if classes is not None else []
    response = yield Call(
        "POST",
        path("adapters", name, "predictions"),
        tensors=body,
        idempotency_key=idempotency_key,
        most_bytes=_most_bytes(None if count is None or not known else count * min(known)),
    )
    answer, tensors = read_tensors(AdapterPredictionAnswer, response)
    if classes is not None and answer.classes != list(classes):
        raise ProtocolError("The server answered with other classes than the adapter has.")
    abstained = checked_flags(tensors.pop("abstained", None), count)
    output = shown_output(answer.output, top_k)
    return AdapterPrediction(
        answer.adapter,
        answer.version,
        answer.classes,
        output,
        checked_tensors(tensors, (count,), len(answer.classes), output),
        answer.cost,
        response.request.headers[IDEMPOTENCY_HEADER],
        None if abstained is None else abstained.astype(np.bool_),
    )


def _count(
    images: Sequence[Picture] | None, rows: Sequence[int] | None, known: int | None
) -> int | None:
    """How many pictures are asked about, if that is known."""
    some = images if images is not None else rows
    return known if some is None else len(some)


def _most_bytes(numbers: int | None) -> int:
    """The most that an answer of tensors comes to, with so many numbers and as many classes."""
    if numbers is None:
        return MOST_TENSOR_BYTES
    return DOCUMENT_BYTES + numbers * (np.dtype(np.float32).itemsize + np.dtype(np.int32).itemsize)
