"""Sessions recorded and played back: a server's calls and answers in one file.

What is played back was computed and counted when it was recorded: it needs no model and no ledger.
"""
