"""The share of unusable samples that ends a run."""

from __future__ import annotations

import pytest

from flexiclip.errors import UserError
from flexiclip.train.records.bad_samples import GRACE, BadShare


def bad(count: int, reason: str = "cut: it ends early") -> list[dict[str, str]]:
    return [{"shard": "a.tar", "key": f"s{n}", "reason": reason} for n in range(count)]


@pytest.mark.parametrize(
    ("limit", "count", "good", "ends"),
    [
        (0.1, 10, 90, False),  # a tenth of what was read is still allowed
        (0.1, 10, 89, True),
        (0.1, GRACE - 1, 0, False),  # the first batch of a good set may hold a few
        (0.1, GRACE, 0, True),
        (0.0, GRACE, 10**6, True),
        (1.0, 500, 0, False),
    ],
)
def test_a_share_above_the_limit_ends_the_run(limit: float, count: int, good: int, ends: bool) -> None:
    share = BadShare(limit)
    share.add(bad(count // 2))
    share.add(bad(count - count // 2))
    if not ends:
        share.check(good)
        return
    with pytest.raises(
        UserError, match=rf"^{count} of {count + good} samples cannot be used, more than data.max_bad_fraction={limit:g}: "
    ):
        share.check(good)


def test_the_most_frequent_reasons_are_named_with_an_example() -> None:
    share = BadShare(0.5)
    for count, reason in ((2, "four: 4"), (9, "one: x"), (3, "three: 3"), (5, "two"), (1, "one: y")):
        share.add(bad(count, reason))
    with pytest.raises(UserError) as caught:
        share.check(0)
    assert "10 x one, as in a.tar s0; 5 x two, as in a.tar s0; 3 x three, as in a.tar s0. All stand in" in str(caught.value)
