"""A remote provider, simulated: how slow, how narrow, how strict and how unreliable it is."""

from craft_server.simulate.profile import Profile, ProfileError, load_profile, shipped_profiles
from craft_server.simulate.provider import Provider, Struck

__all__ = [
    "Profile",
    "ProfileError",
    "Provider",
    "Struck",
    "load_profile",
    "shipped_profiles",
]
