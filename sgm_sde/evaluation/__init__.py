"""Quality of samples: distances to data, and solvers against network calls."""
