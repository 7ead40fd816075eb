"""What the studies share: trainings and evaluations by the command line's own commands, claims, records, and the page."""
