"""Planning of hardware: the memory, time and traffic of an update on devices that need not be present."""

from .plans import Plan, plan

__all__ = [
    "Plan",
    "plan",
]
