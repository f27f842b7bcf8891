"""A remote provider, simulated: how slow, how narrow, how strict and how unreliable it is.

It knows latency, bandwidth, limits, faults and the moment at which a model's revision changes, all
of them as a profile states them and a seed draws them. It does not know what a call asks for, who
makes it, nor what it is charged.
"""

from craft_server.simulate.faults import Struck
from craft_server.simulate.profile import Profile, ProfileError, load_profile, shipped_profiles
from craft_server.simulate.provider import Provider

__all__ = [
    "Profile",
    "ProfileError",
    "Provider",
    "Struck",
    "load_profile",
    "shipped_profiles",
]
