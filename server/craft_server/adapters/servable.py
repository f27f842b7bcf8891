"""What serving one version needs: its head, and the features of its texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from craft_server.adapters.tables import ADAPTERS
from craft_shared.adapter import Adapter


@dataclass(frozen=True)
class ServableAdapter:
    """What a prediction needs: the head, and the prompts' text features [P, C + M, width]."""

    adapter: Adapter
    text_features: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        head = sum(tensor.nbytes for tensor in self.adapter.head.tensors().values())
        return head + self.adapter.codes.nbytes + self.text_features.nbytes


def read_content(connection: sa.Connection, adapter_id: int) -> tuple[bytes, bytes]:
    """The adapter's body and its text features, both as they were stored."""
    row = connection.execute(
        sa.select(ADAPTERS.c.body, ADAPTERS.c.text_features).where(ADAPTERS.c.id == adapter_id)
    ).one()
    return row.body, row.text_features


def servable(body: bytes, text_features: bytes) -> ServableAdapter:
    """Parses what `read_content` read."""
    adapter = Adapter.from_bytes(body)
    shape = (adapter.config.prompts, len(adapter.config.scored), -1)
    flat = np.frombuffer(bytearray(text_features), np.float32)  # writable, as torch wants it
    return ServableAdapter(adapter, flat.reshape(shape))
