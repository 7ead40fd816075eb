"""Small pictures of the few images that a report shows, read anew from their data sets once the scores are known.

Nothing is kept of the images that are not shown: a data set of 50,000 costs the report no memory.
"""

from __future__ import annotations

import base64
import io
from array import array
from collections.abc import Iterable, Sequence

from flexiclip.data.fields import BadSample

from ..data.images import Record
from ..data.opening import open_source
from ..data.source import Source
from ..suites.dataset import DatasetConfig

SIDE = 96  # pixels of the longer side
QUALITY = 72  # of the JPEG: 2 to 4 KB a picture


class Gallery:
    """The images by the `dataset` of the rows and the record numbers that a result's details speak of."""

    def __init__(self) -> None:
        self._configs: dict[str, DatasetConfig] = {}
        self._numbers: dict[str, array[int]] = {}
        self._sources: dict[str, Source] = {}

    def add(self, rows: Iterable[str], config: DatasetConfig, records: Sequence[Record]) -> None:
        """A data set under the names that its rows have. records: of the images that could be read, in their order."""
        numbers = array("q", (record.number for record in records))
        for name in rows:
            self._configs[name], self._numbers[name] = config, numbers

    def thumbnail(self, dataset: str, record: int) -> str | None:
        """A JPEG as base64; None for a data set that was not added, or an image that can no longer be read."""
        from PIL import Image

        config = self._configs.get(dataset)
        if config is None:
            return None
        if config.name not in self._sources:
            self._sources[config.name] = open_source(config)
        try:
            image = self._sources[config.name].item(self._numbers[dataset][record], ()).image
        except BadSample:
            return None
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=QUALITY, optimize=True)
        return base64.b64encode(data.getvalue()).decode("ascii")
