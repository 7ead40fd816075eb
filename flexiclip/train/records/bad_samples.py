"""Samples that cannot be used: a few are replaced and named, too many end the run (`data.max_bad_fraction`).

What is counted is what all ranks together have met since this start, so a storage that fails now is not outweighed by a month
in which it did not, and every rank comes to the same verdict.
"""

from __future__ import annotations

from collections import Counter

from flexiclip.errors import UserError

GRACE = 8
"""Unusable samples that no run ends for: the first batch of a good set may hold a few."""

_REASONS = 3


class BadShare:
    """The share of the samples read since this start that could not be used, and why."""

    def __init__(self, limit: float) -> None:
        """limit: 0 to 1, the largest share that a run goes on with."""
        self.limit, self.bad = limit, 0
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, bad: list[dict[str, str]]) -> None:
        """Unusable samples of any rank, as {shard, key, reason}."""
        for row in bad:
            kind = row["reason"].split(":")[0]
            self.bad += 1
            self._reasons[kind] += 1
            self._examples.setdefault(kind, " ".join(filter(None, (row["shard"], row["key"]))))

    def check(self, good: int) -> None:
        """good: samples that were used. Raises UserError when the share of the bad ones is too large."""
        read = good + self.bad
        if self.bad < GRACE or self.bad <= self.limit * read:
            return
        why = "; ".join(f"{count} x {kind}, as in {self._examples[kind]}" for kind, count in self._reasons.most_common(_REASONS))
        raise UserError(
            f"{self.bad} of {read} samples cannot be used, more than data.max_bad_fraction={self.limit:g}: {why}. All stand in "
            "bad_samples.jsonl: mend the shards or the storage (flexiclip data check), or raise the limit; the run is saved"
        )
