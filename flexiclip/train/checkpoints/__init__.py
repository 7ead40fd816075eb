"""What a run saves and goes on from: checkpoints, where they lie, when they are written, and the run folder."""
