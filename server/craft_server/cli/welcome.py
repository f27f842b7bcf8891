"""What `craft-server` alone says: the three commands to a first result."""

from __future__ import annotations

TEXT = """\
craft-server hosts a vision-language model behind a prediction API that counts every query.

From nothing to a first result in three commands:

  craft-server keys create --owner me --queries 8000    makes a key, and shows it once
  craft-server serve --model pocket                     http://127.0.0.1:8000
  CRAFT_API_KEY=craft_... craft zero-shot --data DIR    in another terminal, with your pictures

All commands: craft-server --help. What is set where: craft-server config show.
"""
