"""What runs where the GPU is: the agent of a host, and what it loads into each rank.

    agent      forks, watches and ends the ranks of one host
    engine     turns a fresh fork into a rank: process group, device, seed, ipyparallel engine
    cells      runs a cell, always replies
    outputs    takes down everything a cell puts out
    failures   turns an exception into frozen data
    values     packs variables for the way to the notebook, and unpacks what comes from there
    logs       the rank's own log, bounded

Nothing here knows widgets or the notebook's side.
"""
