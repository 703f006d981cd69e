"""Quality of samples and networks: distances to data, solvers against network calls, a network beside its data."""
