"""Preference data: files to rows of the region layout."""
