"""The processes of a run: their ranks, their signs of life, the hosts they stand on, and what they must agree about."""
