"""What the hospital's people are shown and do, whether by a command or on the page; one function for both."""

MOST_RUNS, MOST_DAYS = 100, 3650
"""Of one approval."""

LEAST_TRIALS, TRIALS = 200, 2000
"""Answers of each experiment of an audit."""

NOTE = (
    "The code that answers rounds was attacked with invented patients. No real patient was read, nothing was written "
    "to the ledger, and nothing left."
)
"""Of an audit."""
