"""The models that these tests export."""

from __future__ import annotations

from kit.export_models import folders, make, vocabulary

__all__ = ["folders", "make", "vocabulary"]
