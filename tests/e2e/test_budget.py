"""The paper's budget of 8,000 queries, to the last one, over a socket."""

import numpy as np
import pytest

from craft_client.api import Client
from craft_client.exceptions import BudgetExhausted
from craft_shared.wire import Context, PredictionRequest
from e2e.conftest import Server, StartServer
from quickstart import write_digits

QUERIES, A_CALL = 8000, 250
REQUEST = PredictionRequest(model="pocket", classes=["cat"], context=Context(dim=2))


def _ask(client: Client, prompts: int, picture: bytes) -> int:
    codes = np.zeros((prompts, 2), np.float32)
    return len(client.predict(REQUEST, codes=codes, images=[picture]).log_probs)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return next((folder / "test" / "zero").iterdir()).read_bytes()


def test_the_8001st_query_is_refused_until_a_top_up(server: Server, picture: bytes) -> None:
    key = server.key("--queries", str(QUERIES), owner="exact")
    with Client(server.url, key) as client:
        delivered = sum(_ask(client, A_CALL, picture) for _ in range(QUERIES // A_CALL))
        assert delivered == QUERIES
        for _ in range(3):
            with pytest.raises(BudgetExhausted, match="queries"):
                _ask(client, 1, picture)
        assert client.usage().total.queries == QUERIES
        server.admin("budgets", "top-up", key.split("_")[1], "--queries", "1")
        assert _ask(client, 1, picture) == 1
        with pytest.raises(BudgetExhausted, match="queries"):
            _ask(client, 1, picture)
        assert client.usage().total.queries == QUERIES + 1


def test_a_call_that_asks_for_more_than_is_left_costs_nothing(
    server: Server, picture: bytes
) -> None:
    key = server.key("--queries", "10", owner="frugal")
    with Client(server.url, key) as client:
        with pytest.raises(BudgetExhausted, match="10"):
            _ask(client, 11, picture)
        assert client.usage().total.requests == 0
        assert _ask(client, 10, picture) == 10


def test_a_budget_outlives_the_server(start_server: StartServer, picture: bytes) -> None:
    first = start_server("--model", "pocket")
    key = first.key("--queries", "5", owner="durable")
    with Client(first.url, key) as client:
        _ask(client, 5, picture)
    first.process.terminate()
    first.process.wait(30)
    second = start_server("--model", "pocket", CRAFT_DATA_DIR=first.env["CRAFT_DATA_DIR"])
    with Client(second.url, key) as client, pytest.raises(BudgetExhausted):
        _ask(client, 1, picture)
