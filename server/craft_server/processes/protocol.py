"""What travels between the processes of one server: safetensors bodies over HTTP.

It knows the names of operations, tensors and refusals; both ends import it.
"""

from __future__ import annotations

from craft_server.engine import Overloaded, WorkerDied

ENCODE_IMAGES = "/encode-images"
ENCODE_PROMPTS = "/encode-prompts"
LOG_PROBS = "/log-probs"
STATE = "/state"
FACTS = "/facts"

# Tells answers of one set of weights from those of another that came in its place.
REVISION_HEADER = "Craft-Revision"

REFUSED_STATUS = 503
REFUSALS: dict[str, type[Overloaded | WorkerDied]] = {
    "overloaded": Overloaded,
    "worker-died": WorkerDied,
}
