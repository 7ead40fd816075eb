"""Which recipe may go on with a run that is there."""

from __future__ import annotations

import pytest

from flexiclip.config import Config, to_dict
from flexiclip.errors import UserError
from flexiclip.train.checkpoints.run_folder import check_same_run


def test_a_run_of_a_version_that_had_fewer_keys_goes_on() -> None:
    recipe = to_dict(Config())
    del recipe["objective"], recipe["distillation"], recipe["data"]["mixup"]
    check_same_run(Config(), recipe, "runs/a")
    with pytest.raises(UserError, match=r"runs/a holds a run with objective=contrastive, not distillation"):
        check_same_run(Config(objective="distillation"), recipe, "runs/a")


def test_a_recipe_that_this_version_cannot_read_is_another_run() -> None:
    recipe = to_dict(Config()) | {"objectives": 2}
    with pytest.raises(UserError, match=r"runs/a holds a run with objectives=2, not None"):
        check_same_run(Config(), recipe, "runs/a")
