"""A small checkpoint for the tests of the stores."""

from __future__ import annotations

import json

from flexiclip.train.stores import Store


def put(store: Store, step: int, content: str) -> None:
    """A checkpoint as far as a store cares: files, and their sizes in state.json."""
    aside = store.aside(f"step-{step}")
    (aside / "model").mkdir(parents=True)
    (aside / "model" / "weights").write_text(content)
    (aside / "state.json").write_text(json.dumps({"step": step, "files": {"model/weights": len(content)}}))
    written = store.put(aside, f"step-{step}")
    assert (written / "model" / "weights").read_text() == content


class KilledError(Exception):
    """In the place of kill -9: what the process would have done after it does not happen."""
