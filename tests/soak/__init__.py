"""Thousands of mixed cells on real ranks; afterwards nothing is lost, and nothing has grown.

Not collected by pytest: it takes minutes. `python -m tests.soak` says what it found.

    __main__        options, sessions one after the other, the table, the exit code
    soak            one session: draw a kind, run it, look at the state after it
    bench           the session under test, and what its ranks must have
    good, failing, stopped, dying, values   the kinds of cells
    footprint       descriptors, threads, memory and files of a session
    growth          what they grew by per 1,000 cells, beside its bound; pure
    belongings_cell what every rank has; runs there
"""
