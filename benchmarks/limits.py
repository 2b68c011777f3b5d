"""What limits a missed target, by what a profile showed; printed only where one is missed.

Keys are ``section/other/start of the name``; the longest that fits is taken.
"""

REASONS: dict[str, str] = {}


def reason_of(section: str, other: str, name: str) -> str:
    """Return the reason, or an empty string."""
    whole = f"{section}/{other}/{name}"
    fits = [key for key in REASONS if whole.startswith(key)]
    return REASONS[max(fits, key=len)] if fits else ""
