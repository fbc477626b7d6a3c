"""Who is in the swarm: SWIM as a machine, and the service that runs it over a host."""

from .machine import Joined, Left, Member, Profile, Status, SwimConfig, Updated
from .messages import PROTOCOL_ID, Capabilities, PeerRecord

__all__ = [
    "PROTOCOL_ID",
    "Capabilities",
    "Joined",
    "Left",
    "Member",
    "PeerRecord",
    "Profile",
    "Status",
    "SwimConfig",
    "Updated",
]
