"""Runs that report themselves: what a tuner says of its run, and what is shown of it.

A report is what the client says. The ledger alone knows what was charged; nothing is computed from
a report.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from craft_shared.amounts import MAX_AMOUNT
from craft_shared.units import Units
from craft_shared.wire import Answer, Message
from craft_shared.wire.messages import ModelName, Moment, NewLabel

POINTS_PER_CALL = 500
POINTS_PER_MINUTE = 6000  # of a key
POINTS_PER_RUN = 20_000
POINTS_PER_OWNER = 100_000
RUNS_PER_OWNER = 1000
CANDIDATES_PER_RUN = 20

RunState = Literal["running", "finished", "stopped", "failed"]

RunName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.-]*$", min_length=1, max_length=200),
]
_Count = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
_Loss = Annotated[float, Field(allow_inf_nan=False)]
_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class RunCandidate(Message):
    """What a run might have deployed.

    Attributes:
        name: the recipe's word for it.
        prompts: that its head reads.
        texts: that its head reads beside the class names.
        loss: held-out cross-entropy, nats; null where nothing was held out.
    """

    name: NewLabel = Field(examples=["ridge"])
    prompts: _Count = Field(examples=[1])
    texts: _Count = Field(default=0, examples=[256])
    loss: _Loss | None = Field(default=None, examples=[1.1318])


class RunOutcome(Message):
    """What a run came to, on its training images.

    Attributes:
        before: accuracy of the plain prompt, percent.
        after: of the adapter, percent, each image held out; null where nothing could be.
        deployed: the recipe's word for what the adapter is made of.
        candidates: what it was chosen from.
    """

    before: _Percent = Field(examples=[37.5])
    after: _Percent | None = Field(default=None, examples=[62.5])
    deployed: NewLabel = Field(examples=["ridge"])
    candidates: list[RunCandidate] = Field(default=[], max_length=CANDIDATES_PER_RUN)


class RunReport(Message):
    """Body of `PUT /v1/runs/{run}`: what the run is, and how it stands.

    Attributes:
        title: what people call it.
        model: the model's name.
        dataset: the data set's name.
        recipe: how it tunes.
        budget: queries that it may spend; null where it did not say.
        state: `stopped` by hand, `failed` by an error.
        outcome: once it is finished.
    """

    title: NewLabel = Field(examples=["digits, 16 shots"])
    model: NewLabel = Field(default="", examples=["pocket"])
    dataset: NewLabel = Field(default="", examples=["digits"])
    recipe: NewLabel = Field(default="", examples=["craftbox"])
    budget: _Count | None = Field(default=None, examples=[8000])
    state: RunState = "running"
    outcome: RunOutcome | None = None


class RunPoint(Message):
    """Where a run was after one of its requests.

    Attributes:
        sequence: names the point in its run; the same point again changes nothing.
        generation: generations done; 0 before anything is tuned.
        queries: spent by the run until then.
        loss: mean loss of the request's codes; null where it was not finite.
        best_loss: least loss of a single prompt until then; null where there was none.
        accuracy: percent on the training images; null where nothing could be measured.
        units: everything that the run says it was charged until then.
    """

    sequence: _Count = Field(examples=[1])
    generation: _Count = Field(examples=[1])
    queries: _Count = Field(examples=[72])
    loss: _Loss | None = Field(default=None, examples=[2.2834])
    best_loss: _Loss | None = Field(default=None, examples=[2.1417])
    accuracy: _Percent | None = Field(default=None, examples=[70.0])
    units: Units = Units()


class RunPoints(Message):
    """Body of `PUT /v1/runs/{run}/points`."""

    points: list[RunPoint] = Field(min_length=1, max_length=POINTS_PER_CALL)


class RunEvaluation(Message):
    """Body of `PUT /v1/runs/{run}/evaluation`: what the run's adapter is worth on labelled images.

    Attributes:
        subject: which images, in words.
        n: how many images.
        before: accuracy of the plain prompt, percent.
        accuracy: of the adapter, percent.
        low: Wilson's 95 % interval of `accuracy`.
        high: see `low`.
    """

    subject: NewLabel = Field(examples=["test split of digits, 899 pictures"])
    n: _Count = Field(examples=[899])
    before: _Percent = Field(examples=[62.5])
    accuracy: _Percent = Field(examples=[96.2])
    low: _Percent = Field(examples=[94.7])
    high: _Percent = Field(examples=[97.3])


class RunCard(Answer):
    """A reported run. Times are RFC 3339.

    Attributes:
        run: its name; the ledger's lines of its calls hold the same.
        points: how many it has reported.
        latest: the one with the highest sequence number; null before the first.
        before: accuracy of the plain prompt, percent, by the outcome or else by the first point;
            null where neither says.
        outcome: what it came to on its training images; null before it was reported.
        evaluation: of its adapter; null before one was reported.
        note: what its owner wrote of it in the console.
    """

    run: str = Field(examples=["digits-16-shots"])
    title: str = Field(examples=["digits, 16 shots"])
    model: ModelName
    dataset: str = Field(examples=["digits"])
    recipe: str = Field(examples=["craftbox"])
    budget: int | None = Field(examples=[8000])
    state: RunState
    started_at: Moment
    updated_at: Moment
    points: int = Field(examples=[1])
    latest: RunPoint | None
    before: float | None = Field(default=None, examples=[37.5])
    outcome: RunOutcome | None = None
    evaluation: RunEvaluation | None = None
    note: str = Field(default="", examples=["Twice the shots of the last one."])


class RunList(Answer):
    """Answer of `GET /v1/runs`, the run that was heard of last first."""

    runs: list[RunCard]


class RunCurve(Answer):
    """Answer of `GET /v1/runs/{run}`: the run and its points, in order."""

    card: RunCard
    points: list[RunPoint]
