"""What the files of a run directory are called; `craft_client.journal` says what is in them."""

from __future__ import annotations

RUN_FILE = "run.json"
LINES_FILE = "journal.jsonl"
SUMMARY_FILE = "summary.json"
EVALUATION_FILE = "evaluation.json"
TENSOR_FOLDER = "tensors"
CHECKPOINT = "checkpoint"
ADAPTER_FOLDER = "adapter"
# Held by the process that writes the others; not there when none does.
LOCK_FILE = "lock"
