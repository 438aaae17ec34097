"""Potentials as users have them: the object, its file, predictions of many structures, import of published weights."""
