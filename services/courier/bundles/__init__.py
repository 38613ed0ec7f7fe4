"""Letters that others carried: bundles taken apart, answered, and brought by hand."""
