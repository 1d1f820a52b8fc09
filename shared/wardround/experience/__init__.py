"""What is known of runs: a row each, and what a new task can expect of an algorithm and its settings.

A row (`row`) holds public or noised numbers only. Rows lie in a file that a consortium may keep and share (`file`); our
benchmarks' come with wardround. `regression` learns from them, and `advice` says what to agree on. Nothing here imports
torch, so that an answer takes no longer than typing the question.
"""
