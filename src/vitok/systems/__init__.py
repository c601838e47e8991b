"""Whole systems, each assembled from the public names of the rooms and short enough to read in one sitting."""
