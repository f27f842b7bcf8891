"""Sessions recorded and played back: a server's calls and answers in one file.

It does not know models, keys or the ledger: what is played back was computed and counted when it
was recorded.
"""

from craft_server.recording.tape import Tape, TapeError

__all__ = ["Tape", "TapeError"]
