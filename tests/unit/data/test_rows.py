"""Rows of many clients are those of a dictionary of dictionaries, whichever are asked for and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.data import rows as module
from freehold.data.rows import Rows

PART = st.lists(st.integers(0, 99), max_size=4)
SPLITS = st.dictionaries(
    st.text(max_size=3), st.fixed_dictionaries({s: PART for s in ("validation", "train", "test")}), max_size=6
)


@given(told=SPLITS, asked=st.lists(st.integers(0, 5), max_size=12), kept=st.integers(1, 3))
def test_rows_are_those_of_a_dictionary(told: dict[str, dict[str, list[int]]], asked: list[int], kept: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KEPT", kept)
        rows = Rows({c: {s: np.array(part, dtype=np.int64) for s, part in split.items()} for c, split in told.items()})
        assert list(rows) == list(told) and len(rows) == len(told)
        for i in asked:
            client = list(told)[i % len(told)] if told else "nobody"
            assert (client in rows) == (client in told)
            if told:
                assert {s: part.tolist() for s, part in rows[client].items()} == told[client]
                assert len(rows._views) <= kept
            else:
                with pytest.raises(KeyError):
                    rows[client]
