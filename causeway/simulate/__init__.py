"""How long letters take when links come and go: real devices on a published trace, and carriers that meet at random."""
