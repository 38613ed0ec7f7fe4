"""Letters up: out of UP, verified, ordered, stored in IN."""
