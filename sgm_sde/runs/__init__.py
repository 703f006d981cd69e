"""Runs over many batches and processes, and the folders that they leave."""
