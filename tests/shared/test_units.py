import pytest
from pydantic import ValidationError

from craft_shared.units import UNITS, Units


def test_units_add_one_by_one() -> None:
    total = Units(queries=1, predictions=2) + Units(queries=10, requests=1)
    assert total == Units(queries=11, predictions=2, requests=1)


def test_every_unit_is_readable_by_name() -> None:
    units = Units(queries=1, predictions=2, images=3, texts=4, requests=5)
    assert [units[unit] for unit in UNITS] == [1, 2, 3, 4, 5]


def test_negative_amounts_are_refused() -> None:
    with pytest.raises(ValidationError):
        Units(queries=-1)
