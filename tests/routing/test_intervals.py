"""Exact binomial intervals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hlo.routing.intervals import fewest, interval, p_value, share, upper

COUNTED = st.integers(0, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        # Clopper and Pearson's own chart gives two digits; these are exact.
        (0, 10, 0.0, 0.30850),
        (1, 10, 0.00253, 0.44502),
        (5, 10, 0.18709, 0.81291),
        (10, 10, 0.69150, 1.0),
        (3, 100, 0.00623, 0.08518),
        (0, 0, 0.0, 1.0),
    ],
)
def test_known_intervals(count: int, of: int, low: float, high: float) -> None:
    """Intervals are those of the published tables."""
    assert interval(count, of) == pytest.approx((low, high), abs=5e-6)


@given(counted=COUNTED, confidence=st.floats(0.5, 0.999))
def test_intervals_are_those_of_scipy(counted: tuple[int, int], confidence: float) -> None:
    """Any interval is the one that SciPy's exact binomial test gives."""
    count, of = counted
    if of:
        expected = stats.binomtest(count, of).proportion_ci(confidence, method="exact")
        assert interval(count, of, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("of", [1, 7, 40])
@pytest.mark.parametrize("true", [0.01, 0.05, 0.2, 0.5, 0.77, 0.999])
def test_intervals_cover(of: int, true: float) -> None:
    """Over all that can be counted, a 95 % interval holds the true share with a probability of 95 % at least."""
    chances = [(count, math.comb(of, count) * true**count * (1 - true) ** (of - count)) for count in range(of + 1)]
    covered = sum(chance for count, chance in chances if interval(count, of)[0] <= true <= interval(count, of)[1])
    assert covered >= 0.95 - 1e-12
    above = sum(chance for count, chance in chances if upper(count, of) >= true)
    assert above >= 0.95 - 1e-12


@given(counted=COUNTED)
def test_a_share_lies_in_its_interval(counted: tuple[int, int]) -> None:
    """A share lies between the ends of its interval; of nothing there is none, and the interval says nothing."""
    one = share(*counted)
    if one.of:
        assert one.value == one.count / one.of
        assert 0 <= one.low <= one.value <= one.high <= 1
    else:
        assert (one.value, one.low, one.high, str(one)) == (None, 0.0, 1.0, "none")


def test_a_share_as_words() -> None:
    """A share is told with its interval."""
    assert str(share(3, 50)) == "6.0% (1.3% to 16.5%)"


@given(counted=COUNTED, tolerated=st.floats(0.01, 0.5), level=st.floats(0.01, 0.3))
def test_a_test_passes_where_the_bound_is_low_enough(counted: tuple[int, int], tolerated: float, level: float) -> None:
    """A p-value is at most the level exactly where the upper bound at that level is at most what is tolerated."""
    bound, p = upper(*counted, 1 - level), p_value(*counted, tolerated)
    if abs(p - level) > 1e-9:
        assert (p <= level) == (bound <= tolerated)


@pytest.mark.parametrize(("tolerated", "level", "questions"), [(0.05, 0.05, 59), (0.1, 0.05, 29), (0.05, 0.1, 45)])
def test_the_fewest_that_can_pass(tolerated: float, level: float, questions: int) -> None:
    """So many questions without an error pass, and one fewer do not."""
    assert fewest(tolerated, level) == questions
    assert p_value(0, questions, tolerated) <= level < p_value(0, questions - 1, tolerated)


@pytest.mark.parametrize("counted", [(-1, 3), (4, 3), (1, 0)])
def test_what_is_no_share_is_refused(counted: tuple[int, int]) -> None:
    """More than all, or fewer than none, is a mistake of the caller's."""
    with pytest.raises(ValueError, match="is no share"):
        interval(*counted)
