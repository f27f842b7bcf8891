from pathlib import Path

import numpy as np
import pytest

from craft_client.search import SEARCHES, SPSA, CodeSearch, CorrectedSPSA
from craft_client.settings import Strategy

BOUND = 5.0
DIM, POPULATION = 10, 8
STRATEGIES = pytest.mark.parametrize("strategy", ["cma-es", "random", "spsa"])


def _search(
    strategy: Strategy = "cma-es",
    seed: int = 0,
    *,
    sigma: float = 1.0,
    dim: int = DIM,
    population: int = POPULATION,
    bound: float = BOUND,
) -> CodeSearch:
    search = SEARCHES[strategy]
    return search(dim, population=population, sigma=sigma, bound=bound, seed=[seed])


def _run(search: CodeSearch, target: float, generations: int) -> None:
    for _ in range(generations):
        codes = search.ask()
        search.tell(codes, ((codes - target) ** 2).sum(axis=1))


@STRATEGIES
def test_generations_have_the_promised_shape_type_and_bounds(strategy: Strategy) -> None:
    search = _search(strategy, sigma=4.0)
    for _ in range(3):
        codes = search.ask()
        assert codes.shape == (POPULATION, DIM)
        assert codes.dtype == np.float32
        assert np.abs(codes).max() <= BOUND
        search.tell(codes, codes.sum(axis=1))
    assert search.current().shape == (DIM,)
    assert search.current().dtype == np.float32


@STRATEGIES
def test_without_a_bound_codes_go_as_far_as_they_like(strategy: Strategy) -> None:
    assert np.abs(_search(strategy, sigma=60.0, bound=0.0).ask()).max() > BOUND


@pytest.mark.parametrize(
    ("strategy", "generations", "distance"), [("cma-es", 120, 0.05), ("spsa", 400, 0.05)]
)
def test_a_quadratic_is_minimised(strategy: Strategy, generations: int, distance: float) -> None:
    search = _search(strategy)
    _run(search, 0.5, generations)
    np.testing.assert_allclose(search.current(), 0.5, atol=distance)


def test_random_search_stands_for_the_best_code_of_all_generations() -> None:
    search = _search("random")
    told: list[tuple[float, np.ndarray]] = []
    for losses in (np.arange(POPULATION) + 1.0, np.arange(POPULATION)[::-1] + 5.0):
        codes = search.ask()
        search.tell(codes, losses.astype(np.float32))
        told += zip(losses, codes, strict=True)
    _, code = min(told, key=lambda pair: pair[0])
    np.testing.assert_array_equal(search.current(), code)


def test_random_search_is_not_moved_by_losses() -> None:
    first, second = _search("random"), _search("random")
    first.tell(first.ask(), np.arange(POPULATION, dtype=np.float32))
    second.tell(second.ask(), np.arange(POPULATION, dtype=np.float32)[::-1])
    np.testing.assert_array_equal(first.ask(), second.ask())


def test_spsa_asks_for_pairs_about_its_centre() -> None:
    codes = _search("spsa", population=7).ask()
    np.testing.assert_allclose(codes[:3], -codes[3:6])
    np.testing.assert_array_equal(codes[6], np.zeros(DIM))


def _corrected(seed: int = 0, bound: float = BOUND) -> CorrectedSPSA:
    return CorrectedSPSA(DIM, sigma=1.0, bound=bound, seed=[seed])


def test_corrected_spsa_minimises_a_quadratic_by_two_codes_a_step() -> None:
    search = _corrected()
    assert search.ask().shape == (2, DIM)
    _run(search, 0.5, 2000)
    np.testing.assert_allclose(search.current(), 0.5, atol=0.05)


def test_corrected_spsa_moves_once_several_pairs_have_shown_how_far() -> None:
    search = _corrected()
    for _ in range(CorrectedSPSA.FIRST_PAIRS):
        codes = search.ask()
        np.testing.assert_allclose(codes[0], -codes[1])
        assert not search.current().any()
        search.tell(codes, ((codes - 0.5) ** 2).sum(axis=1))
    codes = search.ask()
    search.tell(codes, ((codes - 0.5) ** 2).sum(axis=1))
    assert search.current().any()


def test_corrected_spsa_follows_blackvips_step_by_hand() -> None:
    """m = 0.9 m + g and z = z - a (g + 0.9 m), with Spall's gains a and c."""
    search, rng = _corrected(bound=0.0), np.random.default_rng([0])
    centre, momentum, sizes, slope = np.zeros(DIM), np.zeros(DIM), [], np.arange(1.0, DIM + 1)
    for number in range(CorrectedSPSA.FIRST_PAIRS + 8):
        step = max(0, number - CorrectedSPSA.FIRST_PAIRS)
        signs, c = rng.choice([-1.0, 1.0], DIM), SPSA.PERTURBATION / (step + 1) ** 0.101
        codes = search.ask()
        np.testing.assert_allclose(codes, [centre + c * signs, centre - c * signs], atol=1e-6)
        losses = (codes.astype(np.float64) @ slope).astype(np.float32)
        search.tell(codes, losses)
        gradient = float(losses[0] - losses[1]) / (2 * c) * signs
        if number < CorrectedSPSA.FIRST_PAIRS:
            sizes.append(np.abs(gradient).mean())
            continue
        a = CorrectedSPSA.FIRST_STEP / np.mean(sizes) * (101 / (step + 101)) ** 0.602
        momentum = 0.9 * momentum + gradient
        centre = centre - a * (gradient + 0.9 * momentum)
        np.testing.assert_allclose(search.current(), centre, rtol=1e-3, atol=1e-5)


@STRATEGIES
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_equal_seeds_search_alike_whatever_else_draws_random_numbers(
    strategy: Strategy, seed: int
) -> None:
    first, second = _search(strategy, seed), _search(strategy, seed)
    for _ in range(5):
        codes = first.ask()
        np.random.default_rng().normal(size=3)
        np.random.rand(3)  # noqa: NPY002 - the global generator that pycma would use
        np.testing.assert_array_equal(second.ask(), codes)
        first.tell(codes, codes.sum(axis=1))
        second.tell(codes, codes.sum(axis=1))
        np.testing.assert_array_equal(first.current(), second.current())


@STRATEGIES
def test_seeds_differ(strategy: Strategy) -> None:
    assert not np.array_equal(_search(strategy, 0).ask(), _search(strategy, 1).ask())


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
@STRATEGIES
def test_losses_that_are_not_finite_or_too_few_are_refused(
    strategy: Strategy, losses: list[float]
) -> None:
    search = _search(strategy)
    with pytest.raises(ValueError, match="finite losses"):
        search.tell(search.ask(), np.array(losses, np.float32))


@STRATEGIES
def test_codes_that_were_not_asked_for_are_refused(strategy: Strategy) -> None:
    search = _search(strategy)
    codes = search.ask()
    with pytest.raises(ValueError, match="not the codes"):
        search.tell(codes + 1, np.zeros(POPULATION, np.float32))


@pytest.mark.parametrize("population", [4, 5])
@pytest.mark.filterwarnings("error")
def test_small_populations_search_without_warnings(population: int) -> None:
    _run(_search(dim=4, population=population), 0.5, 40)


def test_a_second_draws_mean_is_near_the_centre_and_leaves_the_generation_as_it_was() -> None:
    """Its standard deviation is one over the square root of the population."""
    search = _search(dim=400, population=25, bound=0.0)
    codes = search.ask()
    mean = search.current()
    assert mean.std() == pytest.approx(1 / 5, rel=0.15)
    assert not np.allclose(mean, codes.mean(axis=0), atol=0.1)
    search.tell(codes, np.arange(25, dtype=np.float32))
