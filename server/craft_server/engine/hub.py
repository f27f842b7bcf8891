"""Files of repositories on Hugging Face: those in its cache here, or else brought from there."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants


class MissingFilesError(Exception):
    """Files are neither here nor to be had; the message is one line that says how to bring them."""


@dataclass(frozen=True)
class Part:
    """Some files of a repository."""

    what: str  # they are, in words
    any_of: tuple[str, ...]  # one of these is among them
    patterns: tuple[str, ...]  # of all their names


TOKENIZER = Part(
    "the tokenizer's files",
    (
        "tokenizer.json",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "vocab.txt",
        "vocab.json",
    ),
    ("config.json", "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model"),
)
CONFIG = Part("the text tower's configuration", ("config.json",), ("config.json",))


def folder(repository: str, part: Part) -> Path:
    """Where the part's files lie, of a repository or of a folder in its place.

    Raises:
        MissingFilesError: they are not here, and cannot be downloaded.
    """
    if Path(repository).is_dir():
        return Path(repository)
    found = _cached(repository, part)
    if found is None:
        try:
            reach()
            huggingface_hub.snapshot_download(repository, allow_patterns=list(part.patterns))
        except Exception as error:
            raise _missing(repository, part, error) from error
        found = _cached(repository, part)
    if found is None:
        raise _missing(repository, part, None)
    return found


def cached_file(repository: str, name: str) -> Path | None:
    """A repository's file in the cache."""
    path = huggingface_hub.try_to_load_from_cache(repository, name)
    return Path(path) if isinstance(path, str) else None


def reach() -> None:
    """Fails at once where a download would fail only after a minute of retries.

    Raises:
        OSError: Hugging Face does not answer.
    """
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=10):  # noqa: S310 - the hub's own address
            return
    except urllib.error.HTTPError:
        return  # it answers, so it can be asked


def _cached(repository: str, part: Part) -> Path | None:
    for name in part.any_of:
        if path := cached_file(repository, name):
            return path.parent
    return None


def _missing(repository: str, part: Part, error: Exception | None) -> MissingFilesError:
    why = f" ({type(error).__name__}: {error})".partition("\n")[0] if error else ""
    names = " ".join(f"--include '{pattern}'" for pattern in part.patterns)
    here = Path(constants.HF_HUB_CACHE).parent
    return MissingFilesError(
        f"it needs {part.what} of '{repository}' on Hugging Face, which cannot be downloaded{why}: "
        f"where there is internet, run: hf download {repository} {names}; then copy its cache, "
        f"~/.cache/huggingface, to {here} here, or set HF_HOME to where it lies"
    )
