"""`causeway demo`: the main job from end to end, with real processes, checked as it goes."""
