"""Products in fixed point: how near they are to those of float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo.routing.fixed_point import FixedPoint
from tests.routing.test_bank import vectors as units


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 3, 16, 384]), st.integers(0, 2**32 - 1))
def test_products_are_those_of_float64(vectors: int, asked: int, dimension: int, seed: int) -> None:
    """No product is further off than rounding each number to a 90th of the vector's largest can do."""
    some, others = units(vectors, dimension, seed), units(asked, dimension, seed + 1)
    found = FixedPoint(some).products(others)
    assert found.shape == (asked, vectors)
    wanted = others.astype(np.float64) @ some.astype(np.float64).T
    largest, largest_asked = np.abs(some).max(axis=1), np.abs(others).max(axis=1)[:, None]
    length, length_asked = np.abs(some).sum(axis=1), np.abs(others).sum(axis=1)[:, None]
    slack = largest / 180 * length_asked + largest_asked / 180 * (length + dimension * largest / 180)
    assert (np.abs(found - wanted) <= slack + 1e-6).all()


def test_errors_are_small_and_of_both_signs() -> None:
    """In the quadratic mean, cosines of 384 dimensions are 7.5e-4 off, as rounding has it, and to neither side."""
    some, others = units(3000, 384, 0), units(20, 384, 1)
    errors = FixedPoint(some).products(others) - others.astype(np.float64) @ some.astype(np.float64).T
    assert np.sqrt((errors**2).mean()) < 8e-4
    assert np.abs(errors).max() < 4e-3
    assert abs(errors.mean()) < 1e-5


def test_the_largest_sums_do_not_overflow() -> None:
    """Where each number is the largest there is, of either sign, no sum is cut off, on any CPU."""
    same = np.full((1, 384), 384**-0.5, dtype=np.float32)
    found = FixedPoint(np.concatenate([same, -same])).products(np.concatenate([same, -same]))
    np.testing.assert_allclose(found, [[1, -1], [-1, 1]], atol=1e-5)


def test_lengths_count() -> None:
    """Vectors of other lengths have products of other sizes, and nothing has none."""
    one = units(1, 8, 0)
    found = FixedPoint(np.concatenate([1000 * one, 0 * one])).products(np.concatenate([one / 1000, 0 * one]))
    np.testing.assert_allclose(found, [[1, 0], [0, 0]], atol=5e-3)


def test_a_question_does_not_depend_on_the_others() -> None:
    """A vector's products are the same to the last bit, whatever else is asked with it."""
    made, asked = FixedPoint(units(500, 384, 0)), units(9, 384, 1)
    np.testing.assert_array_equal(made.products(asked)[3:4], made.products(asked[3:4]))
