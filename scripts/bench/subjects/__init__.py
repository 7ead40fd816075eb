"""Lists the subjects of docs/explanation/benchmarks.md, one per file, in the order of the page."""

from __future__ import annotations

SUBJECTS = (
    "training_step",
    "flexible_training",
    "attention",
    "pi_resize",
    "losses",
    "loader",
    "pack",
    "sweep",
    "retrieval_memory",
    "encoders",
    "startup",
    "ranks",
    "growth",
    "compile",
    "gradcache",
)
