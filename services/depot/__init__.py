"""The depot: pieces by digest, and the trust metadata that says which bytes to believe (design, section 7)."""
