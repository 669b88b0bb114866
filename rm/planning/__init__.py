"""What an update needs of devices, before they are bought."""

from .plans import Plan, plan

__all__ = [
    "Plan",
    "plan",
]
