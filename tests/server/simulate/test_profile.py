from __future__ import annotations

from pathlib import Path

import pytest

from craft_server.simulate.profile import Profile, ProfileError, load_profile, shipped_profiles

ROOT = Path(__file__).parents[3]
HEAD = 'name = "own"\nversion = 1\ndescription = "Mine."\n'
RESET = '[[faults]]\nkind = "reset"\nat = "after-work"\nrate = 0.5\n'


def written(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def test_the_shipped_profiles_are_named_like_their_files_and_documented() -> None:
    names = shipped_profiles()
    assert set(names) == {
        "flaky",
        "free-tier",
        "ideal",
        "intercontinental",
        "label-only-vision-api",
    }
    documented = (ROOT / "docs/profiles.md").read_text()
    for name in names:
        assert load_profile(name).name == name
        assert f"`{name}`" in documented


def test_ideal_states_nothing_but_its_name() -> None:
    ideal = load_profile("ideal")
    assert ideal == Profile(name="ideal", version=1, description=ideal.description)


def test_the_digest_depends_on_what_has_an_effect_alone(tmp_path: Path) -> None:
    digest = load_profile(written(tmp_path, HEAD + RESET)).digest
    assert len(digest) == 64
    other_words = HEAD.replace("Mine.", "Yours.") + "# A comment.\nseed = 0\n" + RESET
    assert load_profile(written(tmp_path, other_words)).digest == digest
    other_rate = HEAD + RESET.replace("0.5", "0.25")
    assert load_profile(written(tmp_path, other_rate)).digest != digest
    other_seed = HEAD + "seed = 1\n" + RESET
    assert load_profile(written(tmp_path, other_seed)).digest != digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =", "not valid TOML"),
        (HEAD + "speed = 1\n", "speed: Extra inputs"),
        (HEAD + '[output]\nlevel = "labels"\n', "output.level: Input should be 'label'"),
        (HEAD + RESET.replace("0.5", "1.5"), r"faults\[0\]\.rate"),
        (HEAD + RESET + "retry_after = 1\n", "only a status comes with 'retry_after'"),
        (HEAD + RESET + "seconds = 1\n", "a slow-body, and nothing else"),
        (
            HEAD + '[[faults]]\nkind = "503"\nat = "during-answer"\nrate = 0.5\n',
            "too late for another status",
        ),
        (
            HEAD + 2 * '[[quotas]]\nunit = "queries"\nwindow = "day"\nlimit = 1\n',
            "bound the same unit",
        ),
        (HEAD + "[clock]\nspeed = 0.5\n", "clock.speed"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        load_profile(written(tmp_path, text))


def test_an_unknown_name_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no profile 'perfect': name one of flaky"):
        load_profile("perfect")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(str(tmp_path / "none.toml"))


def test_a_profile_may_be_a_windows_file(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(f"\ufeff{HEAD}{RESET}".replace("\n", "\r\n").encode())
    assert load_profile(str(file)) == load_profile(written(tmp_path, HEAD + RESET))
    file.write_bytes('name = "é"'.encode("latin-1"))
    with pytest.raises(ProfileError, match=r"own.toml' is not valid TOML: it is not UTF-8"):
        load_profile(str(file))
