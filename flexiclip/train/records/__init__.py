"""What a run writes down and shows while it goes: metrics, evaluations, bad samples, progress."""
