"""Copies of one image: which they are, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from craft_client.copies import groups_of, in_common, notes, twins_of, with_equal_answers
from craft_client.data import Sample, digest_of


def test_files_with_one_digest_are_one_group_in_the_order_in_which_they_come() -> None:
    assert groups_of(["c", "a", "c", "b", "a"], 5).tolist() == [0, 1, 0, 2, 1]
    assert groups_of(None, 3).tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_images_are_joined_by_files_and_answers_whichever_way_leads_from_one_to_the_other(
    images: list[tuple[int, int]],
) -> None:
    files, answers = zip(*images, strict=True)
    log_probs = np.array(answers, np.float32)[None, :, None] + np.zeros((4, 1, 8), np.float32)
    found = with_equal_answers(groups_of(list(map(str, files)), len(images)), log_probs)
    # By hand: joined until nothing changes.
    group = list(range(len(images)))
    for _ in images:
        for i, one in enumerate(images):
            for j, other in enumerate(images):
                if one[0] == other[0] or one[1] == other[1]:
                    group[i] = group[j] = min(group[i], group[j])
    assert [found[i] == found[0] for i in range(len(images))] == [g == group[0] for g in group]
    assert len(set(found.tolist())) == len(set(group))


def test_answers_of_few_numbers_say_nothing() -> None:
    equal = np.zeros((1, 3, 2), np.float32)
    assert with_equal_answers(np.arange(3), equal).tolist() == [0, 1, 2]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two cats that are one picture, which is a dog too, and an owl."""
    contents = {"cat/1": b"one", "cat/2": b"one", "dog/3": b"one", "owl/4": b"four"}
    for name, content in contents.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    labels = {"cat": 0, "dog": 1, "owl": 2}
    return [Sample(tmp_path / name, labels[name[:3]]) for name in contents]


def test_copies_are_said_in_a_line_each_with_both_paths(
    samples: list[Sample], tmp_path: Path
) -> None:
    digests = [digest_of(sample.path) for sample in samples]
    assert notes(samples, digests) == (
        "Copies of one picture in one class, which are held out together (1): "
        f"'{tmp_path}/cat/1' and '{tmp_path}/cat/2'.",
        f"Copies of one picture in two classes (1): '{tmp_path}/cat/1' and '{tmp_path}/dog/3'.",
    )
    assert notes(samples[2:], digests[2:]) == ()


def test_copies_in_other_splits_are_said_whatever_was_drawn(
    samples: list[Sample], tmp_path: Path
) -> None:
    drawn, digests = [samples[3]], [digest_of(samples[3].path)]
    for name in ("test", "rest", "same"):
        (tmp_path / name).write_bytes(b"four")
    others = [
        ("test", Sample(tmp_path / "test", 2)),
        (None, Sample(tmp_path / "rest", 0)),
        (None, Sample(tmp_path / "same", 2)),
        ("test", Sample(tmp_path / "gone", 2)),
    ]
    assert notes(drawn, digests, twins_of(drawn, others)) == (
        f"Copies of one picture in the test split too (1): '{tmp_path}/owl/4' and "
        f"'{tmp_path}/test'.",
        f"Copies of one picture in two classes (1): '{tmp_path}/owl/4' and '{tmp_path}/rest'.",
    )


def test_a_line_names_the_first_few(tmp_path: Path) -> None:
    many = [Sample(tmp_path / str(number), 0) for number in range(6)]
    (line,) = notes(many, ["same"] * 6)
    assert "together (5):" in line
    assert (line.count(" and "), line.endswith(", ...."), "\n" in line) == (3, True, False)


def test_pictures_that_were_tuned_on_are_said(samples: list[Sample], tmp_path: Path) -> None:
    digests = [digest_of(sample.path) for sample in samples]
    tuned = {digests[3]: "train/owl/4.jpg"}
    (line,) = in_common(tuned, samples, digests)
    assert line == (
        "Copies of one picture that were tuned on too (1): 'train/owl/4.jpg' and "
        f"'{tmp_path}/owl/4'."
    )
    assert in_common({}, samples, digests) == ()
