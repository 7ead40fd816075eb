"""How many samples that cannot be used are too many, counted by hand."""

from __future__ import annotations

import pytest

from flexiclip.errors import UserError
from flexiclip.train.logs import BadShare


def bad(count: int, reason: str = "no image: none of jpg", shard: str = "a.tar") -> list[dict[str, str]]:
    return [{"shard": shard, "key": f"s{n}", "reason": reason} for n in range(count)]


@pytest.mark.parametrize(
    ("limit", "unusable", "good", "ends"),
    [
        (0.1, 7, 0, False),  # fewer than eight end no run
        (0.0, 7, 10, False),
        (0.0, 8, 10**6, True),
        (0.1, 8, 72, False),  # 8 of 80 is a tenth, and not above it
        (0.1, 8, 71, True),
        (0.1, 10, 90, False),
        (1.0, 1000, 0, False),
    ],
)
def test_bad_share_compares_the_unusable_with_all_that_were_read(limit: float, unusable: int, good: int, ends: bool) -> None:
    share = BadShare(limit)
    share.add(bad(unusable))
    if not ends:
        share.check(good)
        return
    with pytest.raises(
        UserError, match=rf"^{unusable} of {good + unusable} samples cannot be used, more than data\.max_bad_frac"
    ):
        share.check(good)


def test_bad_share_names_the_three_most_frequent_reasons_with_an_example() -> None:
    share = BadShare(0.1)
    share.add(bad(2, "empty caption", "first.tar"))
    share.add(bad(4, "image cannot be decoded: truncated", "second.tar") + bad(3, "image cannot be decoded: other", "third.tar"))
    share.add(bad(3, "no image: none of jpg", "fourth.tar") + bad(1, "rare", "fifth.tar"))
    with pytest.raises(UserError) as caught:
        share.check(0)
    reasons = (
        "7 x image cannot be decoded, as in second.tar s0; 3 x no image, as in fourth.tar s0; "
        "2 x empty caption, as in first.tar s0. "
    )
    assert reasons in str(caught.value)
    assert "fifth.tar" not in str(caught.value)
