from __future__ import annotations

import pytest
import structlog
import torch
from torch import Tensor

from craft_server.engine.cuda_graphs import MOST_RECORDINGS, Function, Recordings


class Recorder:
    """Records as a GPU would, on a CPU: what a recording answers is computed anew."""

    def __init__(self, fault: Function | None = None) -> None:
        self._fault = fault
        self.made = self.replayed = 0

    def __call__(self, function: Function, x: Tensor) -> Function:
        self.made += 1
        fault = self._fault

        def replay(other: Tensor) -> Tensor:
            self.replayed += 1
            return function(other) if fault is None else fault(x)

        return replay


def halved(x: Tensor) -> Tensor:
    return x / 2


X = torch.arange(6.0).view(2, 3)


def test_what_was_asked_twice_is_replayed_from_then_on() -> None:
    recorder = Recorder()
    recordings = Recordings(recorder)
    for i in range(5):
        assert torch.equal(recordings.run("key", halved, X + i), (X + i) / 2)
    assert (recorder.made, recorder.replayed) == (1, 1 + 3)
    assert torch.equal(recordings.run("another", torch.neg, X), -X)
    assert recorder.made == 1


def refuse(_: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


@pytest.mark.parametrize("fault", [halved, refuse], ids=["its input is fixed", "fails"])
def test_a_recording_that_is_not_the_function_is_never_used_and_it_is_said(fault: Function) -> None:
    recorder = Recorder(fault)
    recordings = Recordings(recorder)
    with structlog.testing.capture_logs() as lines:
        for key in ("one", "two"):
            for i in range(4):
                assert torch.equal(recordings.run(key, halved, X + i), (X + i) / 2)
    assert (recorder.made, recorder.replayed) == (1, 1)
    assert [line["event"] for line in lines] == ["CUDA graphs are not used"]


def test_what_is_no_number_is_the_same_as_itself() -> None:
    recorder = Recorder()
    recordings = Recordings(recorder)
    for _ in range(3):
        assert recordings.run("key", torch.sqrt, -1 - X).isnan().all()
    assert recorder.replayed == 2


def test_a_recording_that_finds_no_memory_is_tried_again_later() -> None:
    def without_memory(function: Function, x: Tensor) -> Function:
        raise torch.OutOfMemoryError("CUDA out of memory")

    recordings = Recordings(without_memory)
    with structlog.testing.capture_logs() as lines:
        for i in range(3):
            assert torch.equal(recordings.run("key", halved, X + i), (X + i) / 2)
    assert "CUDA graphs are not used" not in [line["event"] for line in lines]


def test_recordings_are_bounded() -> None:
    recorder = Recorder()
    recordings = Recordings(recorder)
    for key in range(2 * MOST_RECORDINGS):
        for _ in range(2):
            recordings.run(key, halved, X)
    assert len(recordings._kept) == MOST_RECORDINGS
