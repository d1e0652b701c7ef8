"""A running set of ranks, in plain Python: run cells, move values, see and stop what runs.

Needs no IPython; the magics in `nbdist.notebook` are one caller among others.
"""
