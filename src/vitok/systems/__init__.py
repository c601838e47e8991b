"""Whole systems, each assembled from the public names of the rooms and short enough to read in one sitting.

`fraud` is here; what a system needs that another would need too belongs in a room below.
"""

from vitok.systems import fraud

__all__ = ["fraud"]
