"""What tuning runs will take of a server and its clients, from measured constants.

It knows what a run asks and what the parts of an answer cost; it does not know HTTP, keys or the
ledger, and loads a model only where it is told to measure one.
"""

from craft_server.plan.architecture import Architecture, UnknownArchitecture
from craft_server.plan.constants import Constants, ConstantsError, Machine
from craft_server.plan.estimate import Load, Plan, Seconds, plan_run
from craft_server.plan.workload import Texts, Workload

__all__ = [
    "Architecture",
    "Constants",
    "ConstantsError",
    "Load",
    "Machine",
    "Plan",
    "Seconds",
    "Texts",
    "UnknownArchitecture",
    "Workload",
    "plan_run",
]
