"""Numbers and columns as text."""

import math

import pytest

from vimpo.text import BYTES, aligned, short


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12, "12"), (107_000, "107k"), (2_900_000, "2.9M"), (4e9, "4B"), (math.nan, "?")],
)
def test_counts_have_three_digits_and_a_unit(number, text):
    assert short(number) == text


def test_bytes_have_units_of_their_own():
    assert [short(n, BYTES) for n in (0, 1.5e6, 12e9, 3e12)] == ["0 B", "1.5 MB", "12 GB", "3 TB"]


def test_columns_align_left_then_right():
    rows = [["size", "n", "of"], ["a", "12", ""], ["b", "3", "x"]]
    assert aligned(rows, left=1) == ["size   n  of", "a     12", "b      3   x"]
    assert aligned(rows, left=3) == ["size  n   of", "a     12", "b     3   x"]
