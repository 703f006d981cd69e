"""Helpers that every other package uses: checks of arguments, shapes, files, caches."""
