"""What disturbs the order of IN: clones, letters taken once more, marks that IN no longer bears out."""
