"""Tests of nbdist; `tests.bench` measures it."""
