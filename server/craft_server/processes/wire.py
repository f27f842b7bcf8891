"""What travels between the processes of one server: safetensors bodies over HTTP.

It knows the names of operations, tensors and refusals; both ends import it.
"""

from __future__ import annotations

from craft_server.engine import Overloaded, WorkerDied

ENCODE_IMAGES = "/encode-images"
ENCODE_PROMPTS = "/encode-prompts"
LOG_PROBS = "/log-probs"
STATE = "/state"

REFUSED_STATUS = 503
REFUSALS: dict[str, type[Overloaded | WorkerDied]] = {
    "overloaded": Overloaded,
    "worker-died": WorkerDied,
}
