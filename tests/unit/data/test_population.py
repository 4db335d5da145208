import numpy as np
import pytest

from freehold.errors import DataError
from tests.unit.data.populations import labeled


def test_clients_stand_in_natural_order() -> None:
    assert labeled(["site 10", "site 2", "b", "site 2"], [0, 1, 0, 1]).clients == ("b", "site 2", "site 10")


def test_rows_and_codes_belong_to_the_clients() -> None:
    population = labeled(["b", "a", "b", "a", "c"], [0, 1, 0, 1, 0])
    assert {client: rows.tolist() for client, rows in population.rows.items()} == {"a": [1, 3], "b": [0, 2], "c": [4]}
    assert population.codes.tolist() == [1, 0, 1, 0, 2]
    assert dict(population.sizes) == {"a": 2, "b": 2, "c": 1}


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="group has 2 values, but there are 3 rows"):
        labeled(["a", "b", "c"], [0, 1, 0], group=np.array(["x", "y"]))
