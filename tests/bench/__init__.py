"""Measure nbdist beside its peers: in one run, on one machine, through real kernels.

__main__   options, the table on stdout, the readings as JSON
runner     who is visited when: peers take turns, so that drift hits all alike
measures   one function for each thing measured, with its budgets beside it
peers      how each peer is started, given a cell and stopped
kernel     one real Jupyter kernel, driven from outside
machine    what /proc tells: who is busy, who is left, how much memory
results    readings, budgets and verdicts; pure
table      results → Markdown and JSON; pure
"""
