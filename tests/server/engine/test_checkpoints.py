"""What a file is that is named as a checkpoint and is none: our words, never PyTorch's advice."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from craft_server.engine import ModelLoadError, ModelSpec, models
from craft_server.engine.models import load_model

pytestmark = pytest.mark.usefixtures("tiny_engine")  # registers the tiny architecture

STATE = {"a": torch.arange(600.0), "b": torch.zeros(3, 5)}
# What PyTorch says of files that it does not load.
ADVICE = ("weights_only", "torch.load", "trust", "2.6", "miniz", "allowlist", "Traceback")


def saved(**options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, **options)
    return file.getvalue()


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"ViT/{name.replace('_', '.')}", content)
    return packed.getvalue()


def tarred() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"), None)
    return packed.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path, str]]:
        return Path.write_text, (Path("exploded"), "x")


def bomb() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": Bomb()}, file)
    return file.getvalue()


ZIP, OLD = saved(), saved(_use_new_zipfile_serialization=False)
TENSORS = safetensors.torch.save(STATE)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605157884\n"


def told(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as error:
        load_model(ModelSpec("craft-tiny", str(path), device="cpu"))
    text = str(error.value)
    assert text.startswith(f"'{path}' is not a checkpoint of 'craft-tiny'")
    assert text.isprintable()
    assert not [word for word in ADVICE if word in text], text
    return text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.pt", b"<!DOCTYPE html><html><title>Sign in</title>", "it is a web page"),
        ("x.bin", b"\xef\xbb\xbf\r\n  <HTML lang=en>", "it is a web page"),
        ("x.safetensors", b"<?xml version='1.0'?><Error>AccessDenied</Error>", "it is a web page"),
        ("x.pt", LFS, "git lfs pull"),
        ("x.safetensors", LFS, "git lfs pull"),
        ("x.pt", b"", "it is empty"),
        ("x.safetensors", b"", "it is empty"),
        ("x.pt", bytes(4096), "zero bytes"),
        ("x.pt", b'{"error":"Repository not found"}', "it is JSON"),
        ("x.safetensors", b"Entry not found\n", "it is text"),
        ("x.pt", "Zugriff verweigert: fehlende Schl\u00fcssel ".encode() * 60, "it is text"),
        ("x.pt", zipped(model_pt=ZIP), "a zip archive of other files: unpack it"),
        ("x.zip", zipped(data_pkl=b"", constants_pkl=b""), "TorchScript"),
        ("x.pt", gzip.compress(ZIP), "a gzip archive: unpack it"),
        ("x.pt", tarred(), "a tar archive: unpack it"),
        ("x.pt", TENSORS, "rename it so that it ends in .safetensors"),
        ("x.safetensors", ZIP, "rename it so that it ends in .pt"),
        ("x.safetensors", OLD, "it is no safetensors file"),
        ("x.safetensors", TENSORS + b"more", "damaged: it has"),
        ("x.safetensors", TENSORS[:20] + b"\xff" + TENSORS[21:], "damaged within its"),
        ("x.pt", ZIP[:100] + bytes(200) + ZIP[300:], "it is damaged, or"),
        ("x.pt", pickle.dumps([1, 2], 2), "it is damaged, cut short, or no checkpoint"),
        ("x.pt", pickle.dumps({"a": Bomb()}, 2), "could run a program"),
        ("x.pt", bomb(), "could run a program"),
        ("x.pt", ZIP, "its tensors are another model's"),
        ("x.pt", OLD, "its tensors are another model's"),
        ("x.safetensors", TENSORS, "its tensors are another model's"),
    ],
)
def test_what_is_no_checkpoint_is_told_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in told(tmp_path / name, content)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("name", "whole"), [("x.pt", ZIP), ("x.pt", OLD), ("x.safetensors", TENSORS)]
)
def test_a_file_that_is_cut_short_anywhere_is_told_as_that(
    tmp_path: Path, name: str, whole: bytes
) -> None:
    for length in {*range(1, 12), *range(12, len(whole), len(whole) // 12), len(whole) - 1}:
        text = told(tmp_path / name, whole[:length])
        assert "download it again" in text, length


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "x.pt"
    path.write_bytes(ZIP)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelLoadError, match="it cannot be read: Permission denied"):
        load_model(ModelSpec("craft-tiny", str(path), device="cpu"))


def test_weights_load_from_each_format(tmp_path: Path) -> None:
    state = load_model(ModelSpec("craft-tiny", device="cpu")).module.state_dict()
    torch.save({"state_dict": state}, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    for name in ("new.pt", "old.pt", "x.safetensors"):
        loaded = load_model(ModelSpec("craft-tiny", str(tmp_path / name), device="cpu"))
        assert not loaded.random_weights


def test_a_downloaded_file_that_does_not_load_is_told_without_pytorchs_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pickle.UnpicklingError("Weights only load failed. Re-run torch.load with trust")

    monkeypatch.setattr(models, "_check_obtainable", lambda name, tag: None)
    monkeypatch.setattr(models.open_clip, "create_model", fail)
    with pytest.raises(ModelLoadError) as error:
        load_model(ModelSpec("RN50", "openai", device="cpu"))
    assert "cannot be used: it is damaged, or" in str(error.value)
    assert not [word for word in ADVICE if word in str(error.value)]
