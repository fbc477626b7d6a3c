"""Who is in the swarm: SWIM as a machine, and the service that runs it over a host."""

from .machine import Joined, Left, Member, Profile, Status, SwimConfig, Updated
from .messages import PROTOCOL_ID, Capabilities, PeerRecord
from .service import Change, Membership, MembershipHost, Remembered, ask_members, open_membership

__all__ = [
    "PROTOCOL_ID",
    "Capabilities",
    "Change",
    "Joined",
    "Left",
    "Member",
    "Membership",
    "MembershipHost",
    "PeerRecord",
    "Profile",
    "Remembered",
    "Status",
    "SwimConfig",
    "Updated",
    "ask_members",
    "open_membership",
]
