"""A plan that several files look at."""

from __future__ import annotations

import pytest

from flexiclip.config import load
from flexiclip.plan.plan import Cluster, make_plan
from flexiclip.plan.result import Plan


@pytest.fixture(scope="module")
def flexiclip_b() -> Plan:
    """The recipe on 16 GPUs."""
    return make_plan(
        load("flexiclip_b", ["train.micro_tokens=null", "train.micro_batch_size=128"]), Cluster(2, 8, "h100"), 400_000_000
    )
