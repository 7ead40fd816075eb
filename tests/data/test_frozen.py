"""What a resumed run draws, compared with what the version before drew.

tests/kit/freezing.py says how frozen.json was made.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from kit import freezing

FROZEN: dict[str, Any] = json.loads(freezing.STORED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", freezing.PLANS)
def test_the_order_of_samples_is_frozen(name: str) -> None:
    assert freezing.order(freezing.plan_of(name)) == FROZEN["orders"][name]


def test_the_quotas_of_weights_are_frozen() -> None:
    assert freezing.quotas() == FROZEN["quotas"]


def test_the_sources_of_a_block_are_frozen() -> None:
    assert freezing.blocks() == FROZEN["blocks"]


def test_lengths_are_frozen() -> None:
    found = freezing.lengths()
    assert found.keys() == FROZEN["lengths"].keys()
    for name, lengths in FROZEN["lengths"].items():
        assert found[name] == lengths, name


def test_raw_draws_are_frozen() -> None:
    assert freezing.raw() == FROZEN["raw"]


def test_seeds_of_dropout_are_frozen() -> None:
    assert freezing.dropout() == FROZEN["dropout"]


def test_substitutes_are_frozen() -> None:
    assert freezing.substitutes() == FROZEN["substitutes"]


@pytest.mark.parametrize("name", freezing.VIEWS)
def test_captions_crops_and_flips_are_frozen(name: str) -> None:
    assert freezing.views(name) == FROZEN["views"][name]


def test_what_mixup_keeps_is_frozen() -> None:
    """To the last bit but one: another machine's `pow` may round otherwise."""
    found = freezing.kept()
    assert found.keys() == FROZEN["kept"].keys()
    for p, kept in FROZEN["kept"].items():
        np.testing.assert_allclose(found[p], kept, rtol=1e-14, err_msg=p)


@pytest.mark.parametrize("kind", ["batches", "sequential"])
def test_batches_are_frozen(kind: str) -> None:
    """A whole loader: samples and their substitutes, captions, and each picture's mean colour, to what resizing may round.

    A sequential source is shuffled by webdataset and by Python's `random`, which may change; it promises no exact resume.
    """
    found = freezing.batches() if kind == "batches" else freezing.batches(sequential=True, mixup=0.0)
    for (samples, captions, means, bad), expected in zip(found, FROZEN[kind], strict=True):
        assert [samples, captions, bad] == [expected[0], expected[1], expected[3]]
        assert np.abs(np.array(means) - np.array(expected[2])).max() <= 1
