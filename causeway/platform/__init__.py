"""A whole platform on one machine: making its state folder, and keeping its processes up."""
