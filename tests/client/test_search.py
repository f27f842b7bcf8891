from pathlib import Path

import numpy as np
import pytest

from craft_client.search import CodeSearch

BOUND = 5.0
DIM, POPULATION = 10, 8


def _search(seed: int = 0, sigma: float = 1.0) -> CodeSearch:
    return CodeSearch(DIM, population=POPULATION, sigma=sigma, bound=BOUND, seed=[seed])


def _run(search: CodeSearch, target: float, generations: int) -> None:
    for _ in range(generations):
        codes = search.ask()
        search.tell(codes, ((codes - target) ** 2).sum(axis=1))


def test_generations_have_the_promised_shape_type_and_bounds() -> None:
    codes = _search(sigma=4.0).ask()
    assert codes.shape == (POPULATION, DIM)
    assert codes.dtype == np.float32
    assert np.abs(codes).max() <= BOUND


def test_a_quadratic_is_minimised() -> None:
    search = _search()
    np.testing.assert_array_equal(search.mean, np.zeros(DIM))
    _run(search, 0.5, 120)
    np.testing.assert_allclose(search.mean, 0.5, atol=0.05)
    assert search.best[1] < 0.02


def test_best_is_the_least_loss_of_all_generations() -> None:
    search = _search()
    told: list[tuple[float, np.ndarray]] = []
    for losses in (np.arange(POPULATION) + 1.0, np.arange(POPULATION)[::-1] + 5.0):
        codes = search.ask()
        search.tell(codes, losses.astype(np.float32))
        told += zip(losses, codes, strict=True)
    loss, code = min(told, key=lambda pair: pair[0])
    assert search.best[1] == loss
    np.testing.assert_array_equal(search.best[0], code)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_equal_seeds_search_alike_whatever_else_draws_random_numbers(seed: int) -> None:
    first, second = _search(seed), _search(seed)
    for _ in range(5):
        codes = first.ask()
        np.random.default_rng().normal(size=3)
        np.random.rand(3)  # noqa: NPY002 - the global generator that pycma would use
        np.testing.assert_array_equal(second.ask(), codes)
        first.tell(codes, codes.sum(axis=1))
        second.tell(codes, codes.sum(axis=1))


def test_seeds_differ() -> None:
    assert not np.array_equal(_search(0).ask(), _search(1).ask())


def test_numpys_global_generator_is_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    _run(_search(), 0.5, 2)
    assert np.random.rand() == expected  # noqa: NPY002


def test_it_says_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(_search(), 0.5, 20)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("losses", [[np.nan] * POPULATION, [np.inf] * POPULATION, [1.0]])
def test_losses_that_are_not_finite_or_too_few_are_refused(losses: list[float]) -> None:
    search = _search()
    with pytest.raises(ValueError, match="finite losses"):
        search.tell(search.ask(), np.array(losses, np.float32))


def test_codes_that_were_not_asked_for_are_refused() -> None:
    search = _search()
    codes = search.ask()
    with pytest.raises(ValueError, match="not the codes"):
        search.tell(codes + 1, np.zeros(POPULATION, np.float32))


@pytest.mark.parametrize("population", [4, 5])
@pytest.mark.filterwarnings("error")
def test_small_populations_search_without_warnings(population: int) -> None:
    search = CodeSearch(4, population=population, sigma=1.0, bound=BOUND, seed=[0])
    _run(search, 0.5, 40)


def test_nothing_told_has_no_best() -> None:
    with pytest.raises(ValueError, match="nothing has been told"):
        _ = _search().best


def test_a_drawn_mean_is_near_the_centre_and_leaves_the_generation_as_it_was() -> None:
    """Its standard deviation is one over the square root of the population."""
    search = CodeSearch(400, population=25, sigma=1.0, bound=0.0, seed=[1])
    codes = search.ask()
    mean = search.drawn_mean()
    assert mean.std() == pytest.approx(1 / 5, rel=0.15)
    assert not np.allclose(mean, codes.mean(axis=0), atol=0.1)
    search.tell(codes, np.arange(25, dtype=np.float32))


def test_without_a_bound_codes_go_as_far_as_they_like() -> None:
    search = CodeSearch(50, population=20, sigma=9.0, bound=0.0, seed=[1])
    assert np.abs(search.ask()).max() > 5.0
