"""How long a run is: what turns durations into steps."""

from __future__ import annotations

from dataclasses import dataclass

from flexiclip.config import Duration, to_steps


@dataclass(frozen=True)
class Horizon:
    """What turns a duration into steps: the run's steps, its global batch and the samples of an epoch (None: unknown)."""

    steps: int
    batch: int
    samples: int | None

    @classmethod
    def of(cls, length: Duration, batch: int, samples: int | None) -> Horizon:
        """The horizon of a run whose length is given in steps, epochs or samples."""
        return cls(to_steps(length, batch=batch, samples=samples), batch, samples)

    def steps_of(self, duration: Duration) -> int:
        """Steps of a duration within this run."""
        return to_steps(duration, batch=self.batch, samples=self.samples, total=self.steps)
