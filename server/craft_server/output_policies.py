"""Output policies of plug-ins: what an operator's own code makes of the keys' policies.

A plug-in is called with who asks (`Asker`) and the policy that the key has, and returns the one
that holds. It may narrow what is shown and never widen it, so that a mistake in it reveals nothing:
what it returns is checked at each call, and one that fails or widens fails the call, uncharged. It
should return the same for the same asker for as long as a server runs, since heads are published
for what their key sees. This module knows plug-ins and policies; it does not know answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from craft_server.policy import Policy
from craft_shared.plugins import Group, Plugin, PluginError, find

OUTPUT_POLICIES = Group("craftbox.output_policies", "output policy")
GROUPS = (OUTPUT_POLICIES,)


@dataclass(frozen=True)
class Asker:
    """Who asks.

    Attributes:
        owner: of the key.
        prefix: of the key, by which commands name it.
        model: the hosted model's name.
    """

    owner: str
    prefix: str
    model: str


OutputPolicy = Callable[[Asker, Policy], Policy]


def output_policy(name: str | None) -> OutputPolicy:
    """The policy of that name, guarded; without a name, one that changes nothing.

    Raises:
        PluginError: it is not installed, or cannot be loaded.
    """
    if name is None:
        return lambda asker, policy: policy
    plugin = find(OUTPUT_POLICIES, name)
    return _guarded(plugin, plugin.load())


def _guarded(plugin: Plugin, narrow: OutputPolicy) -> OutputPolicy:
    def guarded(asker: Asker, policy: Policy) -> Policy:
        with plugin.running():
            found = narrow(asker, policy)
        if not isinstance(found, Policy):
            raise PluginError(f"{plugin} returned a {type(found).__name__}, not a Policy")
        if not found.within(policy):
            raise PluginError(f"{plugin} would show a key more than its own policy does")
        return found

    return guarded
