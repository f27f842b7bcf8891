"""What a shell completes: names of models and of provider profiles, from files of this machine.

Nothing slow is imported: it runs at every press of a key.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def models(incomplete: str) -> list[str]:
    """`pocket` and the architectures of open_clip, whose names are those of its files."""
    names = ["pocket", *_stems("open_clip", "model_configs", ".json")]
    return [name for name in names if name.startswith(incomplete)]


def profiles(incomplete: str) -> list[str]:
    """The provider profiles that are shipped."""
    names = _stems("craft_server", "simulate/profiles", ".toml")
    return [name for name in names if name.startswith(incomplete)]


def _stems(package: str, folder: str, suffix: str) -> list[str]:
    """Names of a package's files without their suffix; the package is not imported."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return sorted(
        file.stem for place in places or [] for file in Path(place, folder).glob(f"*{suffix}")
    )
