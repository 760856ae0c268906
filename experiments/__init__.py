"""Experiments: tables of runs that are trained, evaluated and compared; each resumes where it stopped."""
