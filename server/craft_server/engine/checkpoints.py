"""Files that are to hold a model's weights: what else they may be, in words that help.

What is at a checkpoint's path is often a page that a site sent in its place, a pointer of Git LFS,
an archive, or the first part of a download. PyTorch then says how to load the file unsafely. Here
it is looked at before it is loaded, and what loading raises is said in words of our own; nothing is
unpickled.

Sources: the formats of safetensors, ZIP and Git LFS pointers; PyTorch, "Serialization semantics".
"""

from __future__ import annotations

import codecs
import json
import zipfile
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

_AGAIN = "download it again, and compare its size or SHA-256 with what its site says"
_HEAD = 1024  # bytes that tell what a file is
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")
_LFS = b"version https://git-lfs.github.com/spec/"
_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}
_SAFETENSORS = ".safetensors"
_LONGEST_HEADER = 100 * 2**20  # that safetensors reads


def fault(path: Path) -> str | None:
    """What a file is in the place of a checkpoint, and what to do about it; None if it may be one.

    It is not read as a whole.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not size:
        return f"it is empty: {_AGAIN}"
    if not head.strip(b"\0"):
        return f"it begins with {len(head)} zero bytes, as a download that did not end: {_AGAIN}"
    if found := _other_format(path, head):
        return found
    if head.startswith(b"PK"):
        return _zip_fault(path)
    header = int.from_bytes(head[:8], "little")
    if len(head) > 8 and head[8:9] == b"{" and header <= _LONGEST_HEADER:
        return _safetensors_fault(path, header, size)
    if path.suffix == _SAFETENSORS:
        return f"it is no safetensors file, though its name ends so: {_AGAIN}"
    return None


def is_of_loading(error: Exception) -> bool:
    """Whether a file was there and could not be loaded; otherwise it could not be had."""
    text = str(error)
    return isinstance(error, (UnpicklingError, EOFError, SafetensorError)) or any(
        word in text for word in ("weights_only", "PytorchStreamReader", "loading state_dict")
    )


def words_for(error: Exception) -> str:
    """What loading a checkpoint has raised, and what to do about it."""
    text = str(error)
    if "loading state_dict" in text or "size mismatch" in text:
        return "its tensors are another model's: name the model that it was saved from"
    if isinstance(error, UnpicklingError) or "Unsupported" in text:
        return (
            "it is damaged, or holds more than tensors, which could run a program: download it "
            "again, or let who made it save the state_dict alone, best as safetensors"
        )
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return f"it is damaged, cut short, or no checkpoint ({type(error).__name__}): {_AGAIN}"


def _other_format(path: Path, head: bytes) -> str | None:
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begins.startswith(_PAGES):
        return (
            "it is a web page, as a site sends that wants a sign-in or shows an error: open it in "
            "a browser to see which, then download the file itself"
        )
    if begins.startswith(_LFS):
        return (
            "it is a pointer of Git LFS, which stands for the file: run 'git lfs pull' in its "
            "repository, or download the file itself"
        )
    for mark, name in _ARCHIVES.items():
        if head.startswith(mark):
            return f"it is a {name} archive: unpack it, and name the checkpoint in it"
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it, and name the checkpoint in it"
    if path.suffix in (".npz", ".npy"):
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    if "\0" in text or not all(sign.isprintable() or sign.isspace() for sign in text):
        return None
    what = "JSON" if begins.startswith((b"{", b"[")) else "text"
    return f"it is {what}, as a site sends that refuses a download: read it, then {_AGAIN}"


def _zip_fault(path: Path) -> str | None:
    """PyTorch's files are ZIP archives of a pickle and of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return f"it is cut short: its end, which lists what is in it, is missing; {_AGAIN}"
    if path.suffix == ".npz":
        return None
    if "constants.pkl" in names:
        return (
            "it is a program for TorchScript, as OpenAI's own files are, which is not run: name "
            "the tag, such as --pretrained openai, or save its state_dict as safetensors"
        )
    if "data.pkl" not in names:
        return "it is a zip archive of other files: unpack it, and name the checkpoint in it"
    if path.suffix == _SAFETENSORS:
        return "it is PyTorch's format, not safetensors: rename it so that it ends in .pt"
    return None


def _safetensors_fault(path: Path, header: int, size: int) -> str | None:
    try:
        with path.open("rb") as file:
            file.seek(8)
            entries = json.loads(file.read(header))
            ends = [
                entry["data_offsets"][1]
                for name, entry in entries.items()
                if name != "__metadata__"
            ]
            wanted = 8 + header + max(ends, default=0)
    # Whatever is wrong with what somebody else has written.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        cut = size < 8 + header
        return f"it is {'cut short' if cut else 'damaged'} within its safetensors header: {_AGAIN}"
    if size != wanted:
        what = "cut short" if size < wanted else "damaged"
        return f"it is {what}: it has {size:,} bytes, and its header speaks of {wanted:,}; {_AGAIN}"
    if path.suffix != _SAFETENSORS:
        return "it is a safetensors file under another name: rename it so that it ends in " + (
            _SAFETENSORS
        )
    return None
