"""Data for trials: splitting a real set across devices as unevenly as it is in the field."""
