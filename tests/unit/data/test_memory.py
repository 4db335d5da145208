from pathlib import Path

import numpy as np
import pytest

from freehold.data import from_csv
from freehold.data.memory import available_bytes
from freehold.errors import NotEnoughMemory


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 5 MB: 40,000 rows of 12 numbers."""
    path = tmp_path_factory.mktemp("large") / "large.csv"
    lines = [",".join(f"{value:.6f}" for value in row) for row in np.random.default_rng(0).normal(size=(400, 12))]
    with path.open("w") as file:
        file.write(",".join(["site", *(f"f{index}" for index in range(12)), "y"]) + "\n")
        for row in range(40_000):
            file.write(f"s{row % 7},{lines[row % 400]},{row % 2}\n")
    return path


def test_a_table_that_does_not_fit_says_what_it_needs(large: Path) -> None:
    with pytest.raises(NotEnoughMemory) as caught:
        from_csv(large, client="site", target="y", memory_limit_bytes=4 << 20)
    assert "about 400" in caught.value.message and "12 number columns" in caught.value.message
    assert "4 MiB are allowed" in caught.value.message
    assert "--drop" in caught.value.hint and "Parquet" in caught.value.hint and "fit)" in caught.value.hint


def test_dropping_columns_lowers_the_need(large: Path) -> None:
    limit = 26 << 20
    with pytest.raises(NotEnoughMemory):
        from_csv(large, client="site", target="y", memory_limit_bytes=limit)
    few = from_csv(large, client="site", target="y", drop=[f"f{index}" for index in range(1, 12)], memory_limit_bytes=limit)
    assert len(few.target) == 40_000


def test_a_table_that_fits_is_read_whole(large: Path) -> None:
    population = from_csv(large, client="site", target="y")
    assert len(population.target) == 40_000 and sum(population.sizes.values()) == 40_000


def test_there_is_memory() -> None:
    assert available_bytes() > 1 << 20
