"""What `craft` alone says: the three commands to a first result."""

from __future__ import annotations

_TEXT = """\
craft tunes a vision-language model that it may only call, and counts what it costs.

From pictures to an adapter in three commands, with DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg:

  craft zero-shot --data DIR                              how good the model is as it is
  craft tune --data DIR --shots 16 --run runs/first       tunes it: one query
  craft evaluate runs/first --data DIR                    how good it is then

{server}
All commands: craft --help. What is set where: craft config show.
"""
_NO_KEY = """\
The server is {url} ({source}). There is no API key yet; its operator makes one:
  craft-server keys create --owner me --queries 8000, and then here: export CRAFT_API_KEY=craft_...
No server? craft-server, without arguments, says how to start one.
"""
_KEY = "The server is {url} ({source}), and an API key is set. Is it there? craft models\n"


def welcome() -> None:
    """Prints it on stdout."""
    from craft_client.cli import configuration
    from craft_client.cli.show import print_lines

    settings = configuration.load()
    url = settings["url"]
    has_key = not settings.keys().isdisjoint({"api_key", "api_key_file"})
    server = (_KEY if has_key else _NO_KEY).format(url=url.value, source=url.source)
    print_lines(_TEXT.format(server=server).rstrip().split("\n"))
