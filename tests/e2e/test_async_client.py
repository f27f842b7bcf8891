"""The asynchronous client against a real server: charges, and what a cancelled call leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from craft_client import AsyncClient
from craft_shared.wire import PredictionRequest
from e2e.conftest import Server

REQUEST = PredictionRequest(model="pocket", classes=["one", "two"], templates=["the digit {}."])


def test_calls_at_a_time_are_charged_once_each_and_a_cancelled_one_is_had_again(
    server: Server, digits: Path
) -> None:
    pictures = [path.read_bytes() for path in sorted(digits.rglob("*.png"))[:4]]

    async def work() -> None:
        async with AsyncClient(server.url, server.key()) as client:
            answers = await asyncio.gather(
                *(client.predict(REQUEST, images=[picture]) for picture in pictures)
            )
            together = await client.predict(REQUEST, images=pictures)
            np.testing.assert_allclose(
                np.concatenate([answer.log_probs for answer in answers], axis=1),
                together.log_probs,
                atol=1e-4,
            )
            before = (await client.usage()).total.queries
            assert before == 5

            call = asyncio.create_task(
                client.predict(REQUEST, images=pictures, idempotency_key="cut-short")
            )
            await asyncio.sleep(0.02)  # whether it had been sent or done, the end is the same
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            again = await client.predict(REQUEST, images=pictures, idempotency_key="cut-short")
            np.testing.assert_allclose(again.log_probs, together.log_probs, atol=1e-4)
            usage = await client.usage()
            assert usage.total.queries == before + 1
            assert [charge.state for charge in usage.charges] == ["settled"] * 6

    asyncio.run(work())
